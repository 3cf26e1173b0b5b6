#!/usr/bin/env bash
# axios-auth-refresh 5.0.2, refresh-fetch 0.9.0, google-auth-library 10.9.1: each late 401 logs in
#
# Behaviour: at a 401 they log in and send the request once more; one login at a time. But a refusal
# that arrives after it begins another login, although the key that was refused is not the one that
# they hold by now. Nobody compares the two.
# Seen with Node 20: five requests are under way when their key dies, and the server refuses one
# after another, each when the one before has succeeded with a new key: five logins. With the two
# keys compared, as in the last line below: one.
# Why it matters: where a login ends the key before it, each late refusal kills a good key, of the
# other requests and of whoever else has read it; these are refused in their turn, and so on. The
# slower the server, the more logins. Compare the key of the refused request with the one in the
# store, under the lock, and log in only when they are the same.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install_npm axios@1.21.1 axios-auth-refresh@5.0.2 refresh-fetch@0.9.0 lodash@4.17.21 \
        google-auth-library@10.9.1
    node --no-warnings - << 'NODE' || changed 'see above'
const http = require('node:http');
const axios = require('axios');
const {OAuth2Client} = require('google-auth-library');
const {createAuthRefresh} = require('axios-auth-refresh');
const {configureRefreshFetch} = require('refresh-fetch');

const REQUESTS = 5;
let url, alive, logins, ended;

// Each login ends the key before it. Request n is refused when request n - 1 has succeeded.
const server = http.createServer(async (request, response) => {
    const end = (status, body) => {
        response.writeHead(status, {'content-type': 'application/json'}).end(JSON.stringify(body));
    };
    request.resume();
    if (request.url === '/login') {
        logins += 1;
        alive = `key-${logins}`;
        return end(200, {access_token: alive, token_type: 'Bearer', expires_in: 86400});
    }
    if (request.headers.authorization === `Bearer ${alive}`) return end(200, {});
    await ended[Number(request.url.slice(1)) - 1]?.promise;
    end(401, {});
});

async function logIn() {
    return (await axios.post(`${url}login`)).data.access_token;
}

async function send(path, key) {
    const response = await fetch(`${url}${path}`, {headers: {authorization: `Bearer ${key}`}});
    if (!response.ok) throw response;
    return response;
}

const MAKE = {
    'axios-auth-refresh': () => {
        let key = 'old';
        const api = axios.create();
        api.interceptors.request.use((config) => {
            config.headers.Authorization = `Bearer ${key}`;
            return config;
        });
        createAuthRefresh(api, async () => { key = await logIn(); });
        return (path) => api.get(`${url}${path}`);
    },
    'refresh-fetch': () => {
        let key = 'old';
        return configureRefreshFetch({
            fetch: (path) => send(path, key),
            shouldRefreshToken: (error) => error.status === 401,
            refreshToken: async () => { key = await logIn(); },
        });
    },
    'google-auth-library': () => {
        const client = new OAuth2Client({
            clientId: 'shop',
            endpoints: {oauth2TokenUrl: `${url}login`},
            forceRefreshOnFailure: true,
        });
        client.setCredentials({access_token: 'old', refresh_token: 'password'});
        return (path) => client.request({url: `${url}${path}`});
    },
    'with the keys compared': () => {
        let key = Promise.resolve('old');
        return async (path) => {
            const sent = key;
            try {
                return await send(path, await sent);
            } catch (error) {
                if (key === sent) key = logIn();
                return send(path, await key);
            }
        };
    },
};

async function main() {
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    url = `http://127.0.0.1:${server.address().port}/`;
    const seen = [];
    for (const [name, make] of Object.entries(MAKE)) {
        logins = 0;
        alive = 'a key of which nobody knows';
        ended = Array.from({length: REQUESTS}, () => {
            let resolve;
            return {promise: new Promise((done) => { resolve = done; }), resolve: () => resolve()};
        });
        const get = make();
        let good = 0;
        await Promise.all(ended.map(async ({resolve}, number) => {
            const {status} = await get(String(number));
            good += status === 200;
            resolve();
        }));
        console.log(`${name}: ${good} of ${REQUESTS} requests succeed, after ${logins} logins`);
        seen.push(good, logins);
    }
    process.exit(seen.join() === [5, 5, 5, 5, 5, 5, 5, 1].join() ? 0 : 1);
}

main();
NODE
    still_so 'each late refusal begins another login'
}

main "$@"
