<?php
// Call AMO once for each line of the input; print the account's id, or the error, its code and its description.
require "snippet.php";

use League\OAuth2\Client\Provider\Exception\IdentityProviderException;

while (fgets(STDIN) !== false) {
    try {
        echo json_decode((string) amo("GET", "/api/v4/account")->getBody(), true)["id"], "\n";
    } catch (IdentityProviderException $error) {
        ["error" => $code, "error_description" => $description] = $error->getResponseBody();
        echo "IdentityProviderException $code $description\n";
    }
}
