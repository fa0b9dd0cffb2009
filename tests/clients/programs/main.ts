// Call the private API with the client that OpenAPI Generator's `typescript-fetch` generated, and print the results.
import { Configuration, PrivateApi, Problem, ProblemFromJSON, ResponseError } from "./client";

declare const process: { env: Record<string, string> };

/** Return the status and the problem details of a call that fails. */
async function problemOf(call: Promise<unknown>): Promise<{ status: number; problem: Problem }> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof ResponseError)) throw error;
    return { status: error.response.status, problem: ProblemFromJSON(await error.response.json()) };
  }
  throw new Error("the call succeeded");
}

async function main(): Promise<void> {
  const { AMO_CALLBACK, API_KEY, EXPIRES_AT } = process.env;
  const api = new PrivateApi(new Configuration({ basePath: AMO_CALLBACK, accessToken: API_KEY }));
  const page = await api.listConnections({ limit: 10 });
  const id = page.items[0].id;
  const token = await api.takeToken({ id });
  const refreshed = await api.refreshToken({ id, refreshBody: { rejectedAccessToken: token.accessToken } });
  const authorization = (await api.takeAuthorizationRaw({ id })).raw;
  const issued = await api.issueToken({ grantType: "refresh_token", refreshToken: id, clientSecret: API_KEY });
  const unknown = await problemOf(api.takeToken({ id: "unknown" }));
  const entry = { accessToken: "opaque", domain: "second.amocrm.ru", accountId: "77", userId: 5, expiresAt: EXPIRES_AT };
  const imported = await api.importConnections({ importBody: { connections: [entry] } });
  const reauth = await problemOf(api.refreshToken({ id: "account:77", refreshBody: {} }));
  const started = await api.startOwnedAuthorization({ ownedAuthorizationBody: { owner: "42" } });
  console.log(
    JSON.stringify({
      listed: page.items.map((one) => one.id),
      token: token.accessToken,
      lifetime: (token.expiresAt.getTime() - token.issuedAt.getTime()) / 1000,
      refreshed: refreshed.accessToken,
      authorization: [authorization.status, authorization.headers.get("X-Amo-Authorization")],
      issued: issued.accessToken,
      unknown: [unknown.status, unknown.problem.status, unknown.problem.code],
      imported: imported._new,
      needs_reauth: [reauth.status, reauth.problem.code, reauth.problem.reason],
      authorize_url: started.authorizeUrl,
    }),
  );
}

void main();
