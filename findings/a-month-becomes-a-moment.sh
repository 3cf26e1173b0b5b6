#!/usr/bin/env bash
# got 14.6.6 and axios-retry 4.5.0: asked to stay away for 30 days, they try again at once
#
# Behaviour: both obey Retry-After. More than 2^31-1 ms (24.8 days), as a number or as a date, goes
# uncut to setTimeout of Node, which makes 1 ms of it. So all tries are spent within moments; all
# that is said is a TimeoutOverflowWarning of Node. axios-retry adds up to a fifth at random, so
# with exponentialDelay 24 days may be too long as well. With a timeout set, as neither has by
# itself, both give up at once, as they should. ky 1.14.3 waits. (The next got, 16, wants a newer
# Node.)
# Seen with Node 20: a server says 503 and "Retry-After: 2592000": 3 requests of got and 4 of axios.
# With 20 days: one request of each, and they wait.
# Why it matters: the longer a server asks to be left alone, the sooner it is asked again. One that
# asks for weeks has closed an account or counts calls, and gets all of them in a moment (a POST
# only where it may be tried again: retry.methods, retryCondition). Set a timeout, and let no number
# of a peer reach a timer uncut.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install_npm got@14.6.6 axios@1.21.1 axios-retry@4.5.0 ky@1.14.3
    node --no-warnings - << 'NODE' || changed 'see above'
const http = require('node:http');

const DAY = 86400;
let requests = 0;
let retryAfter;
const server = http.createServer((request, response) => {
    requests += 1;
    request.resume();
    response.writeHead(503, {'retry-after': retryAfter}).end();
});

async function tries(call) {
    requests = 0;
    let end = 'waits';
    const ended = call().catch(() => { end = 'has given up'; });
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 3000))]);
    return `${requests} requests in 3 s, ${end}`;
}

async function main() {
    const {default: got} = await import('got');
    const {default: ky} = await import('ky');
    const axios = require('axios');
    const {default: axiosRetry} = require('axios-retry');
    axiosRetry(axios, {retries: 3, retryDelay: axiosRetry.exponentialDelay});
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${server.address().port}/`;
    const calls = {
        'got': () => got(url),
        'axios-retry': () => axios.get(url),
        'got with a timeout': () => got(url, {timeout: {request: 9000}}),
        'axios-retry with a timeout': () => axios.get(url, {timeout: 9000}),
        'ky without a timeout': () => ky(url, {timeout: false}),
    };
    const seen = [];
    const date = new Date(Date.now() + 30 * DAY * 1000).toUTCString();
    for (const value of [20 * DAY, 30 * DAY, date]) {
        retryAfter = value;
        for (const [name, call] of Object.entries(calls)) {
            seen.push(await tries(call));
            console.log(`Retry-After: ${value}  ${name}: ${seen.at(-1)}`);
        }
    }
    const waits = '1 requests in 3 s, waits';
    const ends = (count) => `${count} requests in 3 s, has given up`;
    const long = [ends(3), ends(4), ends(1), ends(1), waits];
    const good = [waits, waits, ends(1), ends(1), waits, ...long, ...long];
    process.exit(seen.join() === good.join() ? 0 : 1);
}

main();
NODE
    still_so 'a month becomes a moment'
}

main "$@"
