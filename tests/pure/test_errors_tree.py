"""Errors as structures: the message follows its place, and numbers are facts."""

from __future__ import annotations

import pytest

from octavo.errors import ApiError, Place, RequestError


def test_a_place_is_spelled_as_clients_write_it() -> None:
    assert str(Place("messages", 3) / "content" / 0 / "text") == "messages[3].content[0].text"
    assert str(Place("stop")) == "stop"


@pytest.mark.parametrize("what", [" is required", ": it is empty", ""])
def test_a_sentence_about_a_place_follows_it(what: str) -> None:
    at = Place("messages", 3, "role")
    error = RequestError(f"{at}{what}", param=at)
    error.place = Place("input", 7, "role")
    assert (error.message, error.param, str(error)) == (f"input[7].role{what}", "input[7].role", f"input[7].role{what}")


@pytest.mark.parametrize("message", ["nothing is there", "n_predict is 3", "there is no n"])
def test_other_sentences_stay(message: str) -> None:
    error = RequestError(message, param="n")
    error.place = Place("count")
    assert (error.message, error.param) == (message, "count")


def test_an_error_without_a_place_has_no_param() -> None:
    assert ApiError("broken").param is None
    assert ApiError("broken", facts={"tokens": 3}).facts == {"tokens": 3}
