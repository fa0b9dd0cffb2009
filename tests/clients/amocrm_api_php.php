<?php
// A stub of amocrm/amocrm-api-library: the part of its interface that the adapter uses, as documented.

namespace League\OAuth2\Client\Token {
    class AccessToken {
        private int $expires;

        public function __construct(private array $options) {
            $this->expires = time() + $options["expires_in"];
        }

        public function getToken(): string {
            return $this->options["access_token"];
        }

        public function hasExpired(): bool {
            return $this->expires < time();
        }
    }
}

namespace AmoCRM\Client {
    use League\OAuth2\Client\Token\AccessToken;

    class AmoCRMApiClient {
        private string $domain;
        private AccessToken $token;
        private \Closure $refresh;

        public function setAccountBaseDomain(string $domain): self {
            $this->domain = $domain;
            return $this;
        }

        public function setAccessToken(AccessToken $token): self {
            $this->token = $token;
            return $this;
        }

        public function getAccessToken(): AccessToken {
            return $this->token;
        }

        public function setRefreshAccessTokenCallback(callable $callback): self {
            $this->refresh = \Closure::fromCallable($callback);
            return $this;
        }

        public function getRequest(): AmoCRMApiRequest {
            return new AmoCRMApiRequest($this->domain, $this->token, $this->refresh);
        }
    }

    class AmoCRMApiRequest {
        public function __construct(private string $domain, private AccessToken $token, private \Closure $refresh) {
        }

        /** Call AMO; get a token by the callback if the token has expired, and once after a 401. */
        public function get(string $path): array {
            $isRefreshed = $this->token->hasExpired();
            if ($isRefreshed) $this->token = ($this->refresh)();
            [$status, $content] = $this->send($path);
            if ($status === 401 && !$isRefreshed) {
                $this->token = ($this->refresh)();
                [$status, $content] = $this->send($path);
            }
            if ($status !== 200) throw new \RuntimeException("AMO's status is $status");
            return json_decode($content, true);
        }

        private function send(string $path): array {
            $curl = curl_init("https://$this->domain/$path");
            $headers = ["Authorization: Bearer {$this->token->getToken()}"];
            curl_setopt_array($curl, [CURLOPT_RETURNTRANSFER => true, CURLOPT_HTTPHEADER => $headers]);
            $content = curl_exec($curl);
            if ($content === false) throw new \RuntimeException(curl_error($curl));
            return [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), $content];
        }
    }
}
