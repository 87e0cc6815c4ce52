"""Problems with tests: assertions become arguments and values, and the rest stays Python that tests the same."""

import ast
import json
import math

import pytest

from qrpo_jax.data.layouts.assertions import value_test
from qrpo_jax.data.layouts.constants import LARGEST, constant
from qrpo_jax.data.layouts.contests import STANDARD_INPUT
from qrpo_jax.errors import UserError
from tests.helpers.tables import opened, rows_of, write_json_lines

NAMES = ("candidate", "f", "Solution().f")


def expression(text):
    return ast.parse(text, mode="eval").body


@pytest.mark.parametrize(
    "text, value",
    [
        ("-3", -3),
        ("2.0 / 3.0 + 1", 2.0 / 3.0 + 1),
        ("10 ** 9 + 7", 10**9 + 7),
        ("2 ** 100", 2**100),
        ("1 << 3", None),
        ("'ab' * 3 + 'c'", "abababc"),
        ("[0] * 5 + [1]", [0, 0, 0, 0, 0, 1]),
        ("(1, {2: {3}})", (1, {2: {3}})),
        ("set()", set()),
        ("set([1, 2])", {1, 2}),
        ("tuple([1])", (1,)),
        ("list(range(3))", None),
        ("range(3)", range(3)),
        ("float('inf')", math.inf),
        ("-float('inf')", -math.inf),
        ("math.inf", math.inf),
        ("-inf", -math.inf),
        ("not 1", False),
        ("1j", 1j),
        ("b'a'", b"a"),
        ("x", None),
        ("f(1)", None),
        ("{**a}", None),
        ("{[1]}", None),
        ("1 / 0", None),
        ("'%s' % 1", None),
        (f"'a' * {LARGEST + 1}", None),
        ("'a' * 1000 * 1000 * 1000", None),
        ("9 ** 9 ** 9", None),
        ("int('x')", None),
        ("__import__('os')", None),
    ],
)
def test_constants_are_computed_and_nothing_else(text, value):
    try:
        got = constant(expression(text))
    except ValueError:
        got = None
    assert type(got) is type(value) and got == value, got


def test_a_constant_has_the_value_that_python_gives():
    for text in (
        "7 // 2",
        "-7 % 3",
        "2 ** -1",
        "1.5 * 4 - 2",
        "[1] + [2]",
        "str(3)",
        "int('7')",
        "bool([])",
        "dict([(1, 2)])",
    ):
        assert constant(expression(text)) == eval(text), text


@pytest.mark.parametrize(
    "text, test",
    [
        ("candidate(1, b=2) == 3", [[1], {"b": 2}, 3]),
        ("3 == f(1)", [[1], {}, 3]),
        ("Solution().f([1]) == (1, {2})", [[[1]], {}, {"$tuple": [1, {"$set": [2]}]}]),
        ("f(x=float('-inf')) == None", [[], {"x": {"$float": "-inf"}}, None]),
        ("f({1: 'a'}) == {'b': 1, 'a': 2}", [[{"$dict": [[1, "a"]]}], {}, {"$dict": [["b", 1], ["a", 2]]}]),
        ("f(1) is True", {"args": [1], "kwargs": {}, "value": True, "as": "strict"}),
        ("f(1) is None", {"args": [1], "kwargs": {}, "value": None, "as": "strict"}),
        ("f(1)", {"args": [1], "kwargs": {}, "value": True, "as": "truth"}),
        ("not f(1)", {"args": [1], "kwargs": {}, "value": False, "as": "truth"}),
        ("abs(f(1) - 2.0 / 4) < 1e-6", {"args": [1], "kwargs": {}, "value": 0.5, "within": 1e-6}),
        ("math.fabs(0.5 - f(1)) <= 1e-6", {"args": [1], "kwargs": {}, "value": 0.5, "within": 1e-6}),
        (
            "math.isclose(f(1), 0.5, rel_tol=0.001)",
            {"args": [1], "kwargs": {}, "value": 0.5, "within": 0.0, "relative": 0.001},
        ),
        (
            "is_same_list(candidate(l1=list_node([1, 2])), list_node([3]))",
            [[], {"l1": {"$call": ["list_node", [1, 2]]}}, {"$list_node": [3]}],
        ),
        ("is_same_list(candidate(), list_node([]))", [[], {}, None]),
        ("is_same_tree(tree_node([1, None, 2, None]), candidate())", [[], {}, {"$tree_node": [1, None, 2]}]),
        ("f([Pair(1, 2), Pair(3, 4)], 2) == 1", [[[{"$call": ["Pair", 1, 2]}, {"$call": ["Pair", 3, 4]}], 2], {}, 1]),
        ("f(1) == g(2)", None),
        ("f(1) == f(2)", None),
        ("g(1) == 2", None),
        ("f(*[1]) == 2", None),
        ("f(**{'a': 1}) == 2", None),
        ("f(x) == 2", None),
        ("f(1) < 2", None),
        ("f(1) == 2 == 2", None),
        ("f(1) is 300 or True", None),
        ("set(f(1)) == {1}", None),
        ("abs(f(1) - f(2)) < 1", None),
        ("f(1)[0] == 2", None),
    ],
)
def test_an_assertion_on_one_value_is_a_test(text, test):
    assert value_test(expression(text), NAMES) == test


def payload(tmp_path, **record):
    (row,) = rows_of(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', [{'prompt': 'q', 'x': 1} | record])}")
    return json.loads(row.payload)


def test_what_is_no_value_stays_a_script(tmp_path):
    test = """
import random
METADATA = {}
def helper(x):
    return x + 1
def check(candidate):
    assert True, "always"
    print("testing")
    assert candidate(1) == 2
    for i in range(3):
        assert candidate(i) == helper(i)
    assert candidate(random.random()) > 0
check(f)
"""
    read = payload(tmp_path, entry_point="f", test=test)
    assert read["tests"] == [[[1], {}, 2]]
    kept = read["script"]
    assert "for i in range(3):" in kept and "def helper" in kept and "import random" in kept
    assert all(gone not in kept for gone in ("candidate(1) == 2", "check(f)", "assert True", "print")), kept


def test_the_code_before_the_function_comes_before_the_completion(tmp_path):
    stem = 'import math\n\ndef helper(x):\n    return -x\n\ndef f(x):\n    """Says no."""\n'
    read = payload(tmp_path, prompt=stem, entry_point="f", test="def check(candidate):\n    assert candidate(1) == 2")
    assert read["prelude"] == "import math\ndef helper(x):\n    return -x"
    words = payload(tmp_path, prompt="return", entry_point="f", test="assert f(1) == 2")
    assert words["prelude"] == "" and words["tests"] == [[[1], {}, 2]] and "script" not in words


def test_setup_code_of_mbpp_defines_before_and_runs_with_the_script(tmp_path):
    setup = "class Box:\n    pass\nroot = Node(1)"
    read = payload(tmp_path, test_list=["assert g(root) == 1", "assert g(Box()) == 2"], test_setup_code=setup)
    assert read["prelude"] == "class Box:\n    pass" and read["tests"] == [[[{"$call": ["Box"]}], {}, 2]]
    assert read["script"] == f"{setup}\nassert g(root) == 1"
    plain = payload(tmp_path, test_list=["assert math.isclose(g(1), 2)", "assert g(2) == 3"], test_setup_code="")
    assert plain["entry_point"] == "g" and len(plain["tests"]) == 2


EVALPLUS = """
import numpy as np
from math import inf
def is_floats(x) -> bool:
    return isinstance(x, float)
def assertion(out, exp, atol):
    exact_match = {match}
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match
"""
LOOP = """
inputs = [[1, 2], [[3.0], 'a'], [inf]]
results = [3, [0.5, 0.25], (1, 2)]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion({name}(*inp), exp, {within})
"""


def test_the_lists_of_evalplus_are_tests(tmp_path):
    exact = EVALPLUS.format(match="out == exp")
    inside = "def check(candidate):\n" + "\n".join(f"    {line}" for line in LOOP.strip().split("\n"))
    for code, record in (
        (exact + LOOP.format(name="g", within=0), {"test_list": ["assert g(1, 2) == 3"]}),
        (exact + inside.format(name="candidate", within=0), {"entry_point": "g"}),
    ):
        read = payload(tmp_path, test=code, **record)
        assert read["tests"] == [
            [[1, 2], {}, 3],
            {"args": [[3.0], "a"], "kwargs": {}, "value": [0.5, 0.25], "within": 1e-6, "relative": 1e-7},
            [[{"$float": "inf"}], {}, {"$tuple": [1, 2]}],
        ]
        assert read["entry_point"] == "g" and "script" not in read
    loose = payload(tmp_path, entry_point="g", test=exact + LOOP.format(name="g", within=0.01))
    assert [test["within"] for test in loose["tests"]] == [0.01] * 3
    sets = payload(
        tmp_path, entry_point="g", test=EVALPLUS.format(match="set(out) == set(exp)") + LOOP.format(name="g", within=0)
    )
    assert [test["as"] for test in sets["tests"]] == ["set"] * 3
    other = payload(
        tmp_path,
        entry_point="g",
        test=EVALPLUS.format(match="exp == (out is not None)") + LOOP.format(name="g", within=0),
    )
    assert other["tests"] == [] and "out is not None" in other["script"]


def apps(tmp_path, input_output, **record):
    record = {"problem_id": 7, "question": "q", "input_output": json.dumps(input_output)} | record
    return rows_of(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', [record])}")[0]


def test_problems_of_apps_are_programs_or_functions(tmp_path):
    row = apps(
        tmp_path, {"inputs": ["1\n2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}, solutions='["", "print(1)", "x"]'
    )
    assert json.loads(row.payload) == {
        "tests": [{"stdin": "1\n2\n", "stdout": "3\n"}, {"stdin": "3\n4", "stdout": "7"}]
    }
    assert row.id == "7" and row.messages[0].content == f"q\n\n{STANDARD_INPUT}"
    assert [completion.text for completion in row.completions] == ["```python\nprint(1)\n```"]
    calls = {"fn_name": "g", "inputs": [[[1, 2], "a"], [{"1": 2}]], "outputs": [[3], {"4": 5}]}
    row = apps(tmp_path, calls, starter_code="class Solution:\n    def g(self): ", solutions="")
    read = json.loads(row.payload)
    assert read["entry_point"] == "Solution().g" and read["tests"] == [
        {"args": [[1, 2], "a"], "kwargs": {}, "value": [3], "or": 3, "as": "lists"},
        {"args": [{"$dict": [[1, 2]]}], "kwargs": {}, "value": {"$dict": [[4, 5]]}, "as": "lists"},
    ]
    assert "class Solution" in row.messages[0].content and STANDARD_INPUT not in row.messages[0].content
    assert json.loads(apps(tmp_path, calls, starter_code="def g(x):\n").payload)["entry_point"] == "g"


def test_problems_of_apps_without_tests_are_dropped_and_counted(tmp_path):
    good = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    texts = [good, "", "{", json.dumps({"inputs": [], "outputs": []}), json.dumps({"inputs": [3], "outputs": [4]})]
    records = [{"question": f"q{i}", "input_output": text, "solutions": ""} for i, text in enumerate(texts)]
    source = opened(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', records)}")
    assert source.count == 1
    assert {dropped.reason: dropped.number for dropped in source.dropped} == {
        "there are no tests": 3,
        "a test is no text": 1,
    }
    with pytest.raises(UserError, match="line 1: 'input_output' is 3; it must be JSON in text"):
        rows_of(f"jsonl:{write_json_lines(tmp_path / 'b.jsonl', [records[0] | {'input_output': 3}])}")


def test_problems_of_code_contests_have_all_their_tests(tmp_path):
    record = {"name": "n", "description": "q", "time_limit": {"seconds": 2, "nanos": 0}}
    record["public_tests"] = {"input": ["1", "2"], "output": ["a", "b"]}
    record["private_tests"] = {"input": [], "output": []}
    record["generated_tests"] = {"input": ["3"], "output": ["c"]}
    record["solutions"] = {"language": [1, 2, 3, 3], "solution": ["print 1", "int main", "print(1)", "x"]}
    (row,) = rows_of(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', [record])}")
    tests = json.loads(row.payload)["tests"]
    assert [(test["stdin"], test["stdout"]) for test in tests] == [("1", "a"), ("2", "b"), ("3", "c")]
    assert [completion.text for completion in row.completions] == ["```python\nprint(1)\n```"]
    with pytest.raises(UserError, match="'public_tests' is .*; it must have lists input and output"):
        rows_of(f"jsonl:{write_json_lines(tmp_path / 'b.jsonl', [record | {'public_tests': 'x'}])}")
