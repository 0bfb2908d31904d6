"""Paths from a change feed: whatever the order, whatever is missing, nothing is lost or misplaced."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from shared.policy.drive_tree import DriveTree, Kind, Node, Place, learn


@dataclass(frozen=True)
class Told:
    id: str
    parent_id: str | None
    name: str
    kind: Kind = "folder"


ROOT = Told("r", None, "root", "root")


def known(*items: Told) -> dict[str, Node]:
    found: dict[str, Node] = {}
    learn(found, items)
    return found


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_any_order_gives_the_same_paths(draws: list[int], order: random.Random) -> None:
    items, paths = [ROOT], {"r": ""}
    for number, draw in enumerate(draws):
        parent = list(paths)[draw % len(paths)]
        items.append(Told(f"i{number}", parent, f"n{number}"))
        paths[f"i{number}"] = f"{paths[parent]}/n{number}".lstrip("/")
    order.shuffle(items)
    start = order.choice(list(paths))
    whole, part = DriveTree(known(*items)), DriveTree(known(*items), start)
    asked = list(paths)
    order.shuffle(asked)
    for one in asked:
        assert whole.place(one) == Place("inside", paths[one])
        if start == "r" or one == start or paths[one].startswith(f"{paths[start]}/"):
            assert part.place(one) == Place("inside", paths[one].removeprefix(paths[start]).lstrip("/"))
        else:
            assert part.place(one) == Place("outside", paths[one])


def test_the_last_word_on_an_item_counts() -> None:
    tree = DriveTree(known(Told("a", "r", "old"), Told("f", "a", "f.txt", "file"), ROOT, Told("a", "r", "new")))
    assert tree.place("f") == Place("inside", "new/f.txt")


def test_a_renamed_or_moved_folder_takes_along_what_is_below() -> None:
    nodes = known(ROOT, Told("a", "r", "a"), Told("b", "r", "b"), Told("f", "a", "f", "file"))
    learn(nodes, [Told("a", "b", "c")])
    assert DriveTree(nodes).place("f") == Place("inside", "b/c/f")
    assert DriveTree(nodes, "b").place("f") == Place("inside", "c/f")


def test_what_is_gone_keeps_its_name_and_takes_along_what_is_below() -> None:
    nodes = known(ROOT, Told("a", "r", "a"), Told("f", "a", "f", "file"), Told("a", None, "", "gone"))
    assert DriveTree(nodes).place("a") == Place("gone", "a")
    assert DriveTree(nodes).place("f") == Place("gone", "a/f")
    learn(nodes, [Told("x", None, "", "gone")])
    assert DriveTree(nodes).place("x") == Place("gone", "")
    learn(nodes, [Told("a", "r", "back")])
    assert DriveTree(nodes).place("f") == Place("inside", "back/f")


def test_a_start_folder_that_is_gone() -> None:
    nodes = known(ROOT, Told("a", "r", "a"), Told("f", "a", "f", "file"), Told("a", "r", "a", "gone"))
    assert DriveTree(nodes, "a").place("f") == Place("gone", "f")


def test_the_start_folder_need_not_be_told() -> None:
    assert DriveTree(known(Told("f", "start", "f", "file")), "start").place("f") == Place("inside", "f")


def test_an_orphan_is_told_with_what_is_known_of_its_path() -> None:
    tree = DriveTree(known(ROOT, Told("a", "nobody", "a"), Told("f", "a", "f", "file"), Told("p", None, "p", "file")))
    assert tree.place("f") == Place("orphan", "a/f")
    assert tree.place("p") == Place("orphan", "p")
    assert tree.place("unheard-of") == Place("orphan", "")


def test_an_item_without_a_name_is_an_orphan() -> None:
    tree = DriveTree(known(ROOT, Told("a", "r", ""), Told("f", "a", "f", "file")))
    assert tree.place("a") == Place("orphan", "")
    assert tree.place("f") == Place("orphan", "f")


def test_cycles_end() -> None:
    tree = DriveTree(
        known(ROOT, Told("a", "b", "a"), Told("b", "a", "b"), Told("f", "a", "f", "file"), Told("s", "s", "s"))
    )
    assert tree.place("f").where == "cycle"
    assert tree.place("f").path.endswith("/f")
    assert {tree.place(one).where for one in "abs"} == {"cycle"}


def test_a_very_deep_tree() -> None:
    items = [ROOT, *(Told(str(number), str(number - 1) if number else "r", "d") for number in range(5000))]
    assert DriveTree(known(*items)).place("4999").path.count("/") == 4999


def test_a_name_is_one_segment() -> None:
    tree = DriveTree(known(ROOT, Told("f", "r", "../../etc/x", "file")))
    assert tree.place("f") == Place("inside", "..%2F..%2Fetc%2Fx")


def test_what_is_in_a_package_is_told_apart() -> None:
    tree = DriveTree(
        known(ROOT, Told("n", "r", "Notebook", "other"), Told("g", "n", "Group"), Told("s", "g", "a.one", "file"))
    )
    assert tree.place("n") == Place("inside", "Notebook")
    assert tree.place("g") == Place("package", "Notebook/Group")
    assert tree.place("s") == Place("package", "Notebook/Group/a.one")
