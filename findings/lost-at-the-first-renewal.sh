#!/usr/bin/env bash
# requests_oauth2client 1.8.0, httpx-auth 0.23.1, requests-auth 8.0.0: renewed once, and never again
#
# Behaviour: a server that keeps its refresh token leaves it out when it renews a token, and the
# client goes on with the one that it has (RFC 6749, 6). These three take the answer for all that
# there is, and have none after the first renewal. At the end of the second token the first of them
# raises ExpiredAccessToken, from then on at each request; the others log in with name and password
# again, at every second renewal. Authlib 1.9.10 keeps it.
# Seen: a token's life is over four times. requests_oauth2client renews once, and raises three
# times; httpx-auth and requests-auth log in, renew, log in, renew, log in; Authlib renews four
# times.
# Why it matters: a renewal is tried on the day when it is made, and works. On the second day the
# job is dead, or a login with the password comes where none was to come for months: one that ends
# the keys of others, is counted, or asks a person for a code. Try two renewals in a row, with a
# server that sends no new refresh token, or keep the first one yourself.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install requests_oauth2client==1.8.0 requests==2.34.2 requests-auth==8.0.0 \
        httpx-auth==0.23.1 httpx==0.28.1 Authlib==1.9.10
    make_web_server
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import time
import urllib.parse

import httpx
import httpx_auth
import requests
import requests_auth
import requests_oauth2client
from authlib.integrations.requests_client import OAuth2Session
import web_server

LIFE = 3  # of a token
grants, issued, answers = [], {}, []


class Server(web_server.Handler):
    def do_POST(self):
        form = self.read_body().decode()
        grant = urllib.parse.parse_qs(form)["grant_type"][0]
        grants.append(grant)
        token = f"token-{len(grants)}"
        issued[token] = time.monotonic()
        body = {"access_token": token, "token_type": "Bearer", "expires_in": LIFE}
        self.answer(body if grant == "refresh_token" else {**body, "refresh_token": "keep"})

    def do_GET(self):
        token = self.headers["Authorization"].removeprefix("Bearer ")
        status = 200 if time.monotonic() - issued[token] < LIFE else 401
        answers.append(status)
        self.answer({}, status)


url = f"http://{web_server.serve(Server)}"
USER = {"username": "shop", "password": "secret"}


def by_requests_oauth2client():
    client = requests_oauth2client.OAuth2Client(url, auth=("shop", "secret"), testing=True)
    token = client.resource_owner_password("shop", "secret")
    auth = requests_oauth2client.OAuth2AccessTokenAuth(client, token, leeway=0)
    return lambda: requests.get(url, auth=auth, timeout=60)


def by_auth_of(library, auths):
    auth = auths.OAuth2ResourceOwnerPasswordCredentials(url, **USER, early_expiry=0)
    return lambda: library.get(url, auth=auth, timeout=60)


def by_authlib():
    session = OAuth2Session("shop", "secret", token_endpoint=url, leeway=0)
    session.fetch_token(url, **USER)
    return lambda: session.get(url, timeout=60)


seen = {}
for name, make in {
    "requests_oauth2client": by_requests_oauth2client,
    "httpx-auth": lambda: by_auth_of(httpx, httpx_auth),
    "requests-auth": lambda: by_auth_of(requests, requests_auth),
    "Authlib": by_authlib,
}.items():
    grants.clear()
    answers.clear()
    ask = make()
    for age in (0, *[LIFE + 0.2] * 4):
        time.sleep(age)  # a token's whole life
        try:
            ask()
        except requests_oauth2client.ExpiredAccessToken:
            answers.append("expired")
    short = " ".join(grant.removesuffix("_token") for grant in grants)
    print(f"{name:21}  {short:38}  {answers}")
    seen[name] = (grants.copy(), answers.copy())
login, renewal, good = "password", "refresh_token", [200] * 5
alternating = ([login, renewal, login, renewal, login], good)
raise SystemExit(
    seen
    != {
        "requests_oauth2client": ([login, renewal], [200, 200] + ["expired"] * 3),
        "httpx-auth": alternating,
        "requests-auth": alternating,
        "Authlib": ([login] + [renewal] * 4, good),
    }
)
PYTHON
    still_so 'the first renewal loses what the second needs'
}

main "$@"
