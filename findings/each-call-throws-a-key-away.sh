#!/usr/bin/env bash
# httpx-auth 0.23.1 and requests-auth 8.0.0: each call logs in, and throws the new key away
#
# Behaviour: a server may leave expires_in out of its answer to a login; it is only recommended (RFC
# 6749, 5.1). These two then take the token for a JWT and look for its end in there. A token that is
# none is a ValueError ("not enough values to unpack"), after the login, and before the token is
# kept or sent. The next call finds nothing in the cache and logs in again. requests_oauth2client
# 1.8.0 and Authlib 1.9.10 log in once, and send the token for as long as it works.
# Seen: a server gives tokens of 32 hex digits and no expires_in; three calls: three logins, three
# ValueErrors, no call at the server. With the other two: one login, three calls.
# Why it matters: that a server stops to send expires_in, or sends it under another name, is a small
# change. From then on no call is made, and each that is tried ends the key before it: also that
# which others have read from a database. A loop that tries again logs in once a second. Log in with
# code of your own, keep the answer before you understand it, and hand the library a token that is
# there.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install httpx-auth==0.23.1 httpx==0.28.1 requests-auth==8.0.0 requests==2.34.2 \
        requests_oauth2client==1.8.0 Authlib==1.9.10
    make_web_server
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import httpx
import httpx_auth
import requests
import requests_auth
import requests_oauth2client
from authlib.integrations.requests_client import OAuth2Session
import web_server

logins = calls = 0


class Server(web_server.Handler):
    def do_POST(self):
        global logins
        logins += 1
        self.read_body()
        self.answer({"access_token": f"{logins:032x}", "token_type": "Bearer"})

    def do_GET(self):
        global calls
        calls += self.headers["Authorization"] == f"Bearer {logins:032x}"
        self.answer({})


url = f"http://{web_server.serve(Server)}"
CLIENT = {"client_id": "shop", "client_secret": "secret"}


def by_auth_of(library, auths):
    auth = auths.OAuth2ClientCredentials(url, **CLIENT)
    return lambda: library.get(url, auth=auth, timeout=60)


def by_requests_oauth2client():
    client = requests_oauth2client.OAuth2Client(url, **CLIENT, testing=True)
    auth = requests_oauth2client.OAuth2ClientCredentialsAuth(client)
    return lambda: requests.get(url, auth=auth, timeout=60)


def by_authlib():
    session = OAuth2Session(**CLIENT, token_endpoint=url)
    session.fetch_token(url, grant_type="client_credentials")
    return lambda: session.get(url, timeout=60)


seen = []
for name, make in {
    "httpx-auth": lambda: by_auth_of(httpx, httpx_auth),
    "requests-auth": lambda: by_auth_of(requests, requests_auth),
    "requests_oauth2client": by_requests_oauth2client,
    "Authlib": by_authlib,
}.items():
    logins = calls = errors = 0
    ask = make()
    for _ in range(3):
        try:
            ask()
        except ValueError:
            errors += 1
    print(f"{name:21}  logins: {logins}, ValueErrors: {errors}, calls with the last key: {calls}")
    seen.append((logins, errors, calls))
raise SystemExit(seen != [(3, 3, 0), (3, 3, 0), (1, 0, 3), (1, 0, 3)])
PYTHON
    still_so 'three calls, three keys thrown away'
}

main "$@"
