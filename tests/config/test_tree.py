"""Trees of settings: what lies over what, and where a value came from."""

from __future__ import annotations

from llmkit.config.tree import Node, dotted, find, location_of, merge, tree_of, undotted


def tree(values: object, location: str) -> Node:
    """All nodes at one location."""
    if isinstance(values, dict):
        return Node({name: tree(value, location) for name, value in values.items()}, location)
    if isinstance(values, list):
        return Node([tree(value, location) for value in values], location)
    return Node(values, location)


def test_mappings_merge_and_all_else_is_replaced():
    under = tree({"a": {"b": 1, "c": [1, 2]}, "d": 4, "e": {"f": 5}}, "under")
    over = tree({"a": {"c": [3]}, "d": {"g": 6}, "e": 7, "h": 8}, "over")
    merged = merge(under, over)
    assert merged.plain() == {"a": {"b": 1, "c": [3]}, "d": {"g": 6}, "e": 7, "h": 8}
    locations = {"a.b": "under", "a.c": "over", "a.c.0": "over", "d": "over", "h": "over", "a": "over"}
    assert {path: location_of(merged, undotted(path)) for path in locations} == locations
    assert under.plain() == {"a": {"b": 1, "c": [1, 2]}, "d": 4, "e": {"f": 5}}, "nothing is changed in place"


def test_an_empty_section_changes_nothing_and_null_replaces_a_value():
    under = tree({"a": {"b": 1}, "c": 2}, "under")
    assert merge(under, tree({"a": None, "c": None}, "over")).plain() == {"a": {"b": 1}, "c": None}


def test_a_section_may_replace_what_is_under_it_and_stays_so():
    under, over = tree({"a": {"b": 1}, "c": 2}, "under"), tree({"a": {"d": 3}}, "over")
    over.value["a"].replaces = True
    merged = merge(under, over)
    assert merged.plain() == {"a": {"d": 3}, "c": 2}
    third = merge(merged, tree({"a": {"e": 4}}, "third"))
    assert third.plain()["a"] == {"d": 3, "e": 4}
    assert merge(under, third).plain()["a"] == {"d": 3, "e": 4}


def test_a_value_is_found_by_keys_and_numbers():
    node = tree({"a": [{"b": 1}, 2]}, "c.yaml:1")
    assert find(node, ("a", 0, "b")) == Node(1, "c.yaml:1")
    assert find(node, ()) is node
    for path in [("x",), ("a", 2), ("a", "b"), ("a", 1, "b"), (0,)]:
        assert find(node, path) is None


def test_what_is_not_there_is_placed_at_what_is_above_it():
    node = Node({"a": Node({"b": Node([Node(1, "c.yaml:3")], "c.yaml:2")}, "c.yaml:1")}, "c.yaml")
    assert location_of(node, ("a", "b", 0)) == "c.yaml:3"
    assert location_of(node, ("a", "b", 5, "x")) == "c.yaml:2"
    assert location_of(node, ("a", "x")) == "c.yaml:1"
    assert location_of(node, ("x", "y")) == "c.yaml"


def test_dotted_keys_and_paths_are_the_same():
    assert dotted(("data", "sources", 0, "type")) == "data.sources.0.type"
    assert undotted("data.sources.0.type") == ("data", "sources", 0, "type")


def test_a_tree_of_dotted_keys():
    made = tree_of({"a.b": 1, "a.c": [{"d": 2}], "e": None}, "here")
    assert made.plain() == {"a": {"b": 1, "c": [{"d": 2}]}, "e": None}
    assert find(made, ("a", "c", 0, "d")).location == "here"
