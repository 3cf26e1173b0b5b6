#!/usr/bin/env bash
# httpx-auth 0.23.1 and requests-auth 8.0.0: whoever waits for another's login logs in as well
#
# Behaviour: their caches of tokens take a lock around a login, which "forbids concurrent" ones by
# its name. But whoever has waited for it does not look into the cache again: the threads that find
# no token, or one that ends within 30 s, log in one after another.
# Seen: ten threads begin when a token is about to end; a login takes 0.5 s and ends the token
# before it: ten logins, 5 s. Each asks for something with its own token, which takes 1 s: most are
# refused, and no one logs in again. With a token in the cache no thread logs in. (With an
# AsyncClient of httpx it is one login, which blocks the whole event loop: known, pull request 48 of
# httpx_auth.)
# Why it matters: a renewal by many workers at one moment is what a cache is to prevent. Nine live
# keys are killed, and a server that counts logins has ten of them each day; the last worker waits
# ten times as long, and no timeout of its request bounds that. Log in before the workers begin, or
# under a lock of your own, with a look into the cache after it.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install httpx-auth==0.23.1 httpx==0.28.1 requests-auth==8.0.0 requests==2.34.2
    make_web_server
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import concurrent.futures
import threading
import time

import httpx
import httpx_auth
import requests
import requests_auth
import web_server

CALLERS = 10
tokens = []


class Server(web_server.Handler):
    def do_POST(self):
        self.read_body()
        time.sleep(0.5)
        tokens.append(f"key-{len(tokens)}")
        self.answer({"access_token": tokens[-1], "expires_in": 36})

    def do_GET(self):
        time.sleep(1)  # the work, at whose end the key has to be alive
        self.answer({}, 200 if self.headers["Authorization"] == f"Bearer {tokens[-1]}" else 401)


url = f"http://{web_server.serve(Server)}"


def call(library, auths, callers):
    """Let so many threads ask at once; return the numbers of logins and of good answers."""
    auth = auths.OAuth2ClientCredentials(url, client_id="shop", client_secret="secret")
    begin = threading.Barrier(callers)
    logins = len(tokens)

    def ask(_):
        begin.wait()
        return library.get(url, auth=auth, timeout=60).status_code

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        good = list(pool.map(ask, range(callers))).count(200)
    return len(tokens) - logins, good


seen = []
for library, auths in (httpx, httpx_auth), (requests, requests_auth):
    first = call(library, auths, 1)
    again = call(library, auths, CALLERS)
    time.sleep(6)  # the token is to end in less than 30 s
    late = call(library, auths, CALLERS)
    print(
        f"{auths.__name__:13} one thread: {first[0]} login; {CALLERS} with a token: {again[0]};"
        f" {CALLERS} with an old one: {late[0]} logins, {late[1]} of {CALLERS} are served"
    )
    seen.append((first, again, late[0], late[1] < CALLERS))
raise SystemExit(seen != [((1, 1), (0, CALLERS), CALLERS, True)] * 2)
PYTHON
    still_so 'ten threads, ten logins'
}

main "$@"
