// Call the private API with the client that OpenAPI Generator's `go` generated, and print the results as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"

	client "github.com/GIT_USER_ID/GIT_REPO_ID"
)

func must[T any](value T, _ *http.Response, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// problemOf returns the status and the problem details of a call that fails.
func problemOf[T any](_ T, response *http.Response, err error) (int, client.Problem) {
	var failed *client.GenericOpenAPIError
	if !errors.As(err, &failed) {
		panic(err)
	}
	return response.StatusCode, failed.Model().(client.Problem)
}

func main() {
	configuration := client.NewConfiguration()
	configuration.Servers = client.ServerConfigurations{{URL: os.Getenv("AMO_CALLBACK")}}
	api := client.NewAPIClient(configuration).PrivateAPI
	anonymous, key := context.Background(), os.Getenv("API_KEY")
	ctx := context.WithValue(anonymous, client.ContextAccessToken, key)

	page := must(api.ListConnections(ctx).Limit(10).Execute())
	listed := []string{}
	for _, connection := range page.Items {
		listed = append(listed, connection.Id)
	}
	token := must(api.TakeToken(ctx, listed[0]).Execute())
	rejected := client.NewRefreshBody()
	rejected.SetRejectedAccessToken(token.AccessToken)
	refreshed := must(api.RefreshToken(ctx, listed[0]).RefreshBody(*rejected).Execute())
	authorization, err := api.TakeAuthorization(ctx, listed[0]).Execute()
	if err != nil {
		panic(err)
	}
	issued := must(api.IssueToken(anonymous).GrantType("refresh_token").RefreshToken(listed[0]).ClientSecret(key).Execute())
	unknownStatus, unknown := problemOf(api.TakeToken(ctx, "unknown").Execute())

	account, user, expiresAt, owner := "77", int64(5), os.Getenv("EXPIRES_AT"), "42"
	entry := client.NewImportEntry("opaque", "second.amocrm.ru")
	entry.SetAccountId(client.ImportEntryAccountId{String: &account})
	entry.SetUserId(client.ImportEntryUserId{Int64: &user})
	entry.SetExpiresAt(client.ImportEntryExpiresAt{String: &expiresAt})
	imported := must(api.ImportConnections(ctx).ImportBody(*client.NewImportBody([]client.ImportEntry{*entry})).Execute())
	reauthStatus, reauth := problemOf(api.RefreshToken(ctx, "account:77").RefreshBody(*client.NewRefreshBody()).Execute())
	body := client.NewOwnedAuthorizationBody(client.OwnedAuthorizationBodyOwner{String: &owner})
	started := must(api.StartOwnedAuthorization(ctx).OwnedAuthorizationBody(*body).Execute())

	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"listed":        listed,
		"token":         token.AccessToken,
		"lifetime":      token.ExpiresAt.Sub(token.IssuedAt).Seconds(),
		"refreshed":     refreshed.AccessToken,
		"authorization": []any{authorization.StatusCode, authorization.Header.Get("X-Amo-Authorization")},
		"issued":        issued.AccessToken,
		"unknown":       []any{unknownStatus, unknown.Status, unknown.Code},
		"imported":      imported.New,
		"needs_reauth":  []any{reauthStatus, reauth.Code, reauth.GetReason()},
		"authorize_url": started.AuthorizeUrl,
	})
}
