<?php
// Call the private API with the client that OpenAPI Generator's `php` generated, and print the results as JSON.
use OpenAPI\Client\Api\PrivateApi;
use OpenAPI\Client\ApiException;
use OpenAPI\Client\Configuration;
use OpenAPI\Client\Model\ImportBody;
use OpenAPI\Client\Model\ImportEntry;
use OpenAPI\Client\Model\OwnedAuthorizationBody;
use OpenAPI\Client\Model\Problem;
use OpenAPI\Client\Model\RefreshBody;

require 'GuzzleHttp/autoload.php';
spl_autoload_register(function (string $class): void {
    $file = __DIR__ . '/' . strtr($class, ['OpenAPI\\Client' => 'client/lib', '\\' => '/']) . '.php';
    if (is_file($file)) {
        require $file;
    }
});

/** Return the status and the problem details of a call that fails. */
function problem_of(callable $call): array
{
    try {
        $call();
    } catch (ApiException $error) {
        $problem = $error->getResponseObject();
        if ($problem instanceof Problem) {
            return [$error->getCode(), $problem];
        }
        throw $error;
    }
    throw new Exception('the call succeeded');
}

$configuration = Configuration::getDefaultConfiguration()
    ->setHost(getenv('AMO_CALLBACK'))
    ->setAccessToken(getenv('API_KEY'));
$api = new PrivateApi(config: $configuration);
$page = $api->listConnections(10);
$listed = array_map(fn ($one) => $one->getId(), $page->getItems());
$token = $api->takeToken($listed[0]);
$refreshed = $api->refreshToken($listed[0], new RefreshBody(['rejected_access_token' => $token->getAccessToken()]));
[, $status, $headers] = $api->takeAuthorizationWithHttpInfo($listed[0]);
$issued = $api->issueToken('refresh_token', $listed[0], client_secret: getenv('API_KEY'));
[$unknownStatus, $unknown] = problem_of(fn () => $api->takeToken('unknown'));
$entry = new ImportEntry([
    'access_token' => 'opaque',
    'domain' => 'second.amocrm.ru',
    'account_id' => '77',
    'user_id' => 5,
    'expires_at' => getenv('EXPIRES_AT'),
]);
$imported = $api->importConnections(new ImportBody(['connections' => [$entry]]));
[$reauthStatus, $reauth] = problem_of(fn () => $api->refreshToken('account:77', new RefreshBody()));
$started = $api->startOwnedAuthorization(new OwnedAuthorizationBody(['owner' => '42']));
echo json_encode([
    'listed' => $listed,
    'token' => $token->getAccessToken(),
    'lifetime' => $token->getExpiresAt()->getTimestamp() - $token->getIssuedAt()->getTimestamp(),
    'refreshed' => $refreshed->getAccessToken(),
    'authorization' => [$status, $headers['X-Amo-Authorization'][0]],
    'issued' => $issued->getAccessToken(),
    'unknown' => [$unknownStatus, $unknown->getStatus(), $unknown->getCode()],
    'imported' => $imported->getNew(),
    'needs_reauth' => [$reauthStatus, $reauth->getCode(), $reauth->getReason()],
    'authorize_url' => $started->getAuthorizeUrl(),
]);
