// Call AMO once for each line of the input; print the account's id, or the error, its code and its description.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/oauth2"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		answer, err := amo("GET", "/api/v4/account", nil)
		var refused *oauth2.RetrieveError
		if errors.As(err, &refused) {
			var body map[string]string
			check(json.Unmarshal(refused.Body, &body))
			fmt.Println("RetrieveError", body["error"], body["error_description"])
			continue
		}
		check(err)
		var account struct{ ID int }
		check(json.NewDecoder(answer.Body).Decode(&account))
		check(answer.Body.Close())
		fmt.Println(account.ID)
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
