#!/usr/bin/env bash
# libcurl sends a POST again by itself: pycurl 7.49.0 and curl_cffi 0.17.0
#
# Behaviour: where a connection is used again, and the server takes the whole POST and then closes,
# without an answer or in the middle of its first line, libcurl sends the POST once more on a new
# connection. No option was set for that, the caller sees one good answer, and nothing is said of
# two requests. requests 2.34.2, httpx 0.28.1, aiohttp 3.14.5, niquests 3.21.2, primp 2.0.1 and
# wreq 0.13.0 raise instead (tried by hand; the first three below).
# Seen: one login of the caller, two at the server, the second answered. On a new connection
# (FRESH_CONNECT) there is one, and an error.
# Why it matters: a login at Webkassa ends the key in use. A server that did the first and broke
# down before its answer has handed out two keys; a counter of logins, or "was it sent?", is wrong.
# Whoever logs in through curl (PHP's curl extension, too, is libcurl) sets FRESH_CONNECT.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install pycurl==7.49.0 curl_cffi==0.17.0 requests==2.34.2 httpx==0.28.1 aiohttp==3.14.5
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio
import io
import socket
import threading

import aiohttp
import curl_cffi
import httpx
import pycurl
import requests

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers, but for the first POST: it takes all of it, says `last` and closes."""

    def __init__(self, last):
        self.last, self.posts = last, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/api/Authorize"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        file = client.makefile("rb")
        with client, file:
            while request := file.readline():
                length = 0
                while header := file.readline().strip().lower():
                    if header.startswith(b"content-length:"):
                        length = int(header.partition(b":")[2])
                file.read(length)
                self.posts += request.startswith(b"POST")
                if request.startswith(b"POST") and self.posts == 1:
                    client.sendall(self.last)
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(GOOD)


def by_requests(url):
    with requests.Session() as session:
        session.get(url)
        session.post(url, data=b"login")


def by_httpx(url):
    with httpx.Client() as client:
        client.get(url)
        client.post(url, content=b"login")


def by_aiohttp(url):
    async def run():
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as answer:
                await answer.read()
            async with session.post(url, data=b"login") as answer:
                await answer.read()

    asyncio.run(run())


def by_curl_cffi(url):
    with curl_cffi.Session() as session:
        session.get(url)
        session.post(url, data=b"login")


def by_pycurl(url, fresh=0):
    curl = pycurl.Curl()
    curl.setopt(curl.URL, url)
    curl.setopt(curl.WRITEDATA, io.BytesIO())
    curl.perform()
    curl.setopt(curl.POSTFIELDS, "login")
    curl.setopt(curl.FRESH_CONNECT, fresh)
    curl.perform()


def by_pycurl_anew(url):
    by_pycurl(url, fresh=1)


seen = {}
for last in (b"", b"HTTP/1."):
    for use in (by_requests, by_httpx, by_aiohttp, by_curl_cffi, by_pycurl, by_pycurl_anew):
        server = Server(last)
        try:
            use(server.url)
            end = "a good answer"
        except Exception as error:
            end = type(error).__name__
        seen[use, last] = (server.posts, end == "a good answer")
        print(f"{use.__name__:15} server's last words {last!r:10} logins seen: {server.posts}, {end}")
for (use, last), what in seen.items():
    if use in (by_curl_cffi, by_pycurl):
        assert what == (2, True), use
    else:
        assert what == (1, False), use
PYTHON
    still_so 'libcurl sends a login twice, and says nothing'
}

main "$@"
