"""The program in Russian: every sentence, and nothing else, is another in another language."""

from __future__ import annotations

import ast
import gettext
import json
import re
import shutil
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import translations
from world.shop import PROGRAM, ROOT, Result, Shop, fingerprint
from world.webkassa_simulator import answer, errors

CATALOGUE = translations.read_catalogue()
RUSSIAN = {message.id: message.string for message in CATALOGUE if message.id}


def russian(shop: Shop, *arguments: str, **env: str) -> Result:
    """Run the program in Russian, as on a server; leave out what -v adds."""
    env = {"WEBKASSA_LANG": "ru", "WEBKASSA_KEY_COMMAND": "sudo webkassa-key", **env}
    result = shop.run(*arguments, **env)
    lines = [line for line in result.err.splitlines(True) if not line.startswith("DEBUG")]
    return Result(result.code, result.out, "".join(lines))


# The catalogue -----------------------------------------------------------------------------------


def test_every_message_has_a_translation() -> None:
    """To mend it: tests/translations.py."""
    assert [text for text in translations.sentences() if not RUSSIAN.get(text)] == []
    assert [message.id for message in CATALOGUE if message.id and message.fuzzy] == []


def test_nothing_is_translated_that_is_not_said() -> None:
    assert RUSSIAN.keys() - {*translations.sentences()} == set()


def values(text: str) -> list[str]:
    """Return the named values of a sentence, as they are shown."""
    return sorted(f"{name}!{how}:{form}" for _, name, form, how in string.Formatter().parse(text)
                  if name is not None)  # fmt: skip


def fixed(text: str) -> list[str]:
    """Return what is the same in every language: commands, options, settings, SQL, paths."""
    names = r"[A-Z]+_[A-Z_]+(?:=[^\s.,;:]+)?|PG[A-Z]{5,}\S*|[a-z]+_[a-z_]+"
    found = re.findall(rf"`\w+`|--[a-z-]+|{names}|/api/\w+|GRANT .*|NAME[.=]\w+", text)
    return sorted(found)


def test_both_languages_name_the_same_values_commands_and_settings() -> None:
    for text, said in RUSSIAN.items():
        assert (values(said), fixed(said)) == (values(text), fixed(text)), text
        assert said.count("\n") == text.count("\n"), text
        assert text[-1] == "`" or said[-1] != "`", text  # a command ends its line, or does not


def test_compiled_catalogue_is_the_one_that_is_read() -> None:
    with translations.PO.with_suffix(".mo").open("rb") as file:
        compiled = dict(vars(gettext.GNUTranslations(file))["_catalog"])
    assert compiled.pop("").startswith("Project-Id-Version")
    assert compiled == RUSSIAN


def pieces(path: Path) -> Iterator[tuple[int, str]]:
    """Yield words of a language that are put into a message as one of its values."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and re.search(
            "Message$|Fail(ure|ed)$|Fault$|Refused$|Unavailable$|Busy$|Left$",
            ast.unparse(call.func),
        ):
            whole = [part for value in call.keywords for part in ast.walk(value.value)
                     if translations.is_call_of(part, {"Message"})]  # fmt: skip
            inner = {part for message in whole for part in ast.walk(message)}
            for value in call.keywords:
                for part in {*ast.walk(value.value)} - inner:
                    text = part.value if isinstance(part, ast.Constant) else None
                    if isinstance(text, str) and re.search(r"[A-Za-z]{2,} |^[a-z]{3,}$", text):
                        yield part.lineno, text


@pytest.mark.parametrize("name", translations.SOURCES)
def test_no_sentence_is_put_together_of_pieces(name: str) -> None:
    """A word that is put into a sentence is a Message of its own."""
    assert [found for found in pieces(ROOT / name) if found[1] != "psql "] == []


# One update in Russian ---------------------------------------------------------------------------


def test_good_update_in_russian(shop: Shop) -> None:
    result = russian(shop, "update")
    old, new = fingerprint(shop.old_key), fingerprint(shop.webkassa.live)
    assert (result.code, result.out) == (0, "")
    assert result.err == (
        f"INFO: Webkassa: Записан новый ключ {new} от 127.0.0.1:{shop.webkassa.port} в"
        f" shop.public.api_keys вместо {old} (ему 30.0 ч).\n"
    )
    assert shop.holds_the_live_key


def test_refused_login_in_russian(shop: Shop) -> None:
    result = russian(shop, "update", WEBKASSA_PASSWORD="wrong")
    assert result.code == 77
    assert result.err == (
        f"ERROR: Webkassa: 127.0.0.1:{shop.webkassa.port} отвечает HTTP 200, код ошибки 1: вход отклонён."
        f" Записанный ключ {fingerprint(shop.old_key)} остался как был. Исправьте WEBKASSA_LOGIN,"
        " WEBKASSA_PASSWORD или WEBKASSA_API_KEY, затем: sudo webkassa-key update\n"
    )


def test_failing_vendor_in_russian(shop: Shop) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "3600"}))
    result = russian(shop, "update")
    assert result.code == 69
    assert "отвечает HTTP 503: там неполадки. Записанный ключ " in result.err
    assert "пока работает, но только что отправленный вход ещё может его убить." in result.err
    assert result.err.endswith("Проверьте через несколько минут: sudo webkassa-key status\n")


def test_database_down_in_russian(shop: Shop) -> None:
    result = russian(shop, "update", POSTGRES_PORT="9")
    assert (result.code, shop.webkassa.authorizations) == (75, 0)
    assert (
        "недоступен: соединение отклонено или не дождалось ответа. К Webkassa не об" in result.err
    )
    assert (
        "\nВ контейнере 127.0.0.1 - это сам контейнер. Затем: sudo webkassa-key check\n"
        in result.err
    )


def test_dead_key_in_russian(shop: Shop) -> None:
    shop.webkassa.script.append(answer(200, {"Data": {}}))
    shop.webkassa.script.append(answer(400, errors(99)))
    shop.webkassa.issue()  # somebody else logs in
    result = russian(shop, "update")
    key = fingerprint(shop.old_key)
    assert result.code == 76
    assert (
        f"Записанный ключ {key} мёртв. Запустите сейчас же: sudo webkassa-key update" in result.err
    )
    status = russian(shop, "status")
    assert status.code == 2
    first, second, *_ = status.out.splitlines()
    assert re.fullmatch(
        rf"WEBKASSA CRITICAL - ключ {key} \(ему 30.0 ч\): мёртв[|]age=\d+s;90000;176400", first
    )
    assert second == "Запустите сейчас же: sudo webkassa-key update"


@pytest.mark.slow
def test_lost_key_in_russian(shop: Shop) -> None:
    """After the login the database is gone for good."""
    shop.hurry(LoginState__STORING_TIME=3)
    shop.webkassa.on_issue = lambda token: shop.server.stop("immediate")
    try:
        result = russian(shop, "update", WEBKASSA_DEADLINE="10s")
    finally:
        shop.server.start()
    assert result.code == 75
    lost = fingerprint(shop.webkassa.live)
    assert f"Webkassa выдала ключ {lost}, но записать его не удалось: он потерян. " in result.err
    assert result.err.endswith("Исправьте это и запустите сейчас же: sudo webkassa-key update\n")


def test_check_in_russian_names_what_it_looked_at(shop: Shop) -> None:
    said = russian(shop, "check").out
    assert [line[:6] + line[6:].partition(":")[0] for line in said.splitlines()] == [
        "ok    настройки", "ok    база", "ok    блокировка", "ok    запись", "ok    webkassa",
        "WARN  записанный ключ",
    ]  # fmt: skip
    assert "FAIL  база: PostgreSQL " in russian(shop, "check", POSTGRES_PORT="9").out


def test_all_faults_of_the_settings_in_russian(shop: Shop) -> None:
    result = russian(shop, "check", WEBKASSA_LOGIN="", API_KEYS_TABLE="a.b.c")
    assert result.code == 78
    assert result.err.startswith("ERROR: Ошибки в настройках:\n  ")
    assert "\n  API_KEYS_TABLE: это ни таблица, ни schema.table\n" in result.err
    assert "\n  WEBKASSA_LOGIN: не задано\n" in result.err


def test_what_machines_read_is_the_same_in_russian(shop: Shop) -> None:
    shop.age("1 hour")
    both = [
        json.loads(shop.run("status", "--json", WEBKASSA_LANG=lang).out) for lang in ("en", "ru")
    ]
    for report in both:
        report.pop("message")
        del report["accounts"][0]["message"], report["accounts"][0]["age_seconds"]
    assert both[0] == both[1]
    assert both[0]["accounts"][0]["probe"] == "alive"
    said = russian(shop, "status").out
    assert re.match(r"WEBKASSA OK - ключ \w+ \(ему 1.0 ч\); проверка: жив\|age=36\d\ds;", said)


# Which language it is ----------------------------------------------------------------------------

CHOSEN = {
    "by the setting": ({"WEBKASSA_LANG": "ru"}, True),
    "by the locale": ({"LANG": "ru_RU.UTF-8"}, True),
    "by the locale, in a script": ({"LANG": "ru_RU.UTF-8", "LC_ALL": "C.UTF-8", "LANGUAGE": "en"}, True),
    "by the locale's messages": ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ru_RU.UTF-8"}, True),
    "other messages than the locale": ({"LANG": "ru_RU.UTF-8", "LC_MESSAGES": "C.UTF-8"}, False),
    "the setting wins": ({"WEBKASSA_LANG": "en", "LANG": "ru_RU.UTF-8"}, False),
    "a language that is not there": ({"WEBKASSA_LANG": "kk", "LANG": "ru_RU.UTF-8"}, False),
    "nothing is said": ({}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_language_is_chosen(shop: Shop, name: str) -> None:
    env, is_russian = CHOSEN[name]
    for inherited in ("WEBKASSA_LANG", "LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES"):
        shop.env.pop(inherited, None)
    said = shop.main("status", **env).out
    assert ("ключ" in said, "key" in said.partition("|")[0]) == (is_russian, not is_russian)


def test_language_of_the_settings_file_counts_for_what_is_said_of_that_file(shop: Shop) -> None:
    del shop.env["WEBKASSA_LANG"]
    shop.env["LANG"] = "C.UTF-8"  # as the wrapper sets it
    file = shop.home / "my.env"
    file.write_text("WEBKASSA_LANG=ru\nWEBKASSA_LOGIN=x\nthis is no setting\n", encoding="utf-8")
    result = shop.run("check", "--env-file", str(file))
    assert result.code == 78
    assert f"{file}: строка 3 не вида NAME=value" in result.err
    assert "WEBKASSA_LOGIN: действует значение из окружения" in result.err


def test_catalogue_is_read_once_and_before_anything_is_asked(shop: Shop) -> None:
    """No file is opened between login and commit."""
    shop.run_after("""
import sys
def hear(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".mo"):
        print("DEBUG: read", file=sys.stderr)
    if event == "socket.connect":
        print("DEBUG: asked", file=sys.stderr)
sys.addaudithook(hear)
""")
    result = shop.finish(
        shop.start("update", WEBKASSA_LANG="ru")
    )  # without -v it says nothing before
    heard = re.findall("^DEBUG: (read|asked)$", result.err, re.MULTILINE)
    assert result.code == 0
    assert "Записан новый ключ" in result.err
    assert heard[0] == "read"
    assert heard.count("read") == 1
    assert "asked" in heard


BROKEN = {
    "missing": None,
    "empty": b"",
    "cut off": translations.PO.with_suffix(".mo").read_bytes()[:5000],
    "no catalogue": b"#!/bin/sh\n" * 500,
    "of another encoding": translations.PO.with_suffix(".mo").read_bytes().replace(b"utf-8", b"utf-7"),
    "with other values": translations.PO.with_suffix(".mo").read_bytes().replace(b"{key}", b"{kee}"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_catalogue_means_english(shop: Shop, name: str) -> None:
    folder = shop.home / "copy"
    mo = folder / translations.PO.relative_to(ROOT).with_suffix(".mo")
    mo.parent.mkdir(parents=True)
    content = BROKEN[name]
    if content is not None:
        mo.write_bytes(content)
    shutil.copy(PROGRAM, folder)
    shop.program = [str(folder / PROGRAM.name)]
    result = russian(shop, "update")
    assert result.code == 0
    assert "Stored the new key" in result.err
    assert shop.holds_the_live_key
