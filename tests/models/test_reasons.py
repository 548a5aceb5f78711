"""A reason for each kind of fact, and none that the facts do not bear out."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.models.reasons import Reasons, Subjects

pytestmark = pytest.mark.tf
TITLES = ["The Abyss", "Contact", "Casablanca", "Alien"]
CATEGORIES = [["Sci-Fi", "Deep sea", "Drama", "Crew"], ["Sci-Fi", "drama", "Crew", "deep sea"], ["Romance"], ["Sci-Fi"]]
NAN, N = float("nan"), 4


def told(terms, behind, history=(0, 2), ratings=(NAN, NAN), item=1, ordered=True, popular=(1, 0, 0, 0)):
    reasons = Reasons(
        tf.constant([*TITLES, ""]), Subjects.of_texts(TITLES, CATEGORIES), np.array(popular, bool), ordered
    )
    explained = {name: tf.constant([[value]], tf.float32) for name, value in zip(NAMES, terms, strict=True)}
    explained["behind"] = tf.constant([[behind]])
    found = reasons(explained, tf.constant([history]), tf.constant([ratings], tf.float32), tf.constant([[item]]))
    return found.numpy()[0, 0].decode()


NAMES = ("meaning", "feedback", "behaviour")


def test_shared_labels_are_named_where_the_text_has_a_substantial_share():
    """At most three, in the order of the item; also where another term adds more, unless the text adds little."""
    shared = "similar text to The Abyss: Sci-Fi, Drama, Crew"
    assert told((3, 0, 1), (0, -1, 1)) == shared
    assert told((1, 0, 2), (0, -1, 1)) == shared
    assert told((1, 0, 4), (0, -1, 1)) == "often chosen after Casablanca"
    assert told((3, 0, 1), (1, -1, 1)) == "similar to Casablanca"  # nothing is shared
    # A single label is a reason only where the text adds the most.
    assert told((3, 0, 1), (0, -1, 1), item=3) == "similar text to The Abyss: Sci-Fi"
    assert told((2, 0, 3), (0, -1, 1), item=3) == "often chosen after Casablanca"


def test_nothing_comes_after_something_else_where_events_have_no_order():
    assert told((0, 0, 4), (0, -1, 1)) == "often chosen after Casablanca"
    assert told((0, 0, 4), (0, -1, 1), ordered=False) == "often chosen with Casablanca"


def test_what_was_rated():
    assert told((0, 2, 1), (0, 1, 1), ratings=(5, 1)) == "you rated Casablanca low and this is unlike it"
    assert told((0, 2, 1), (0, 0, 1), ratings=(5, 1)) == "you rated The Abyss high and this is like it"


def test_what_is_popular_is_the_reason_without_a_history_alone():
    nobody = {"history": (N, N), "behind": (-1, -1, -1)}
    assert told((0, 0, 0), item=0, **nobody) == "popular with all users"
    assert told((0, 0, 0), item=1, **nobody) == ""
    assert told((0, 0, 0), item=N, **nobody) == ""
    assert told((0, 0, 0), (-1, -1, -1), item=0) == ""


def test_subjects_are_categories_and_words_that_say_something():
    subjects = Subjects.of_texts(["The Making of Wars", "War and the Sea"], [["Sea"], []])
    columns = np.asarray(subjects.columns)
    assert [[subjects.names[place] for place in row if place < len(subjects.names)] for row in columns] == [
        ["Sea", "Making", "Wars"], ["Wars", "Sea"], [],
    ]  # fmt: skip


def test_what_most_items_have_is_not_named():
    """In a catalogue of 20; of fewer items nobody knows."""
    few = Subjects.of_texts(["Alien", "Contact"], [["Film"], ["Film"]])
    many = Subjects.of_texts(["Alien"] * 11 + ["Contact"] * 9, [["Film"]] * 20)
    assert list(few.names) == ["Film", "Alien", "Contact"] and list(many.names) == ["", "", "Contact"]
    reasons = Reasons(tf.constant(["a"] * 20 + [""]), many, np.zeros(20, bool), True)
    alike, several = reasons._shared(tf.constant([[0, 19]]), tf.constant([[1, 18]]))
    assert alike.numpy().tolist() == [[b"", b"Contact"]] and not several.numpy().any()
