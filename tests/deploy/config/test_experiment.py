"""The experiment file: what may stand in it, and what is said when something else does."""

from importlib.resources import files

import pytest
import yaml

from metaleak.deploy.config.experiment import Experiment
from metaleak.deploy.config.reading import MAX_FILE, changed, experiment_from, read_experiment


def problem(plain, *changes):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the tests look at the whole line)
        experiment_from(plain, "mine.yaml", changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_template_says_the_defaults():
    template = yaml.safe_load((files("metaleak.deploy.config") / "templates" / "experiment.yaml").read_text())
    assert experiment_from(template, "template").resolved() == experiment_from({}, "nothing").resolved() | {
        "attacks": experiment_from(template, "template").resolved()["attacks"]
    }


def test_resolved_is_complete_and_gives_the_same_experiment():
    plain = {"model": {"name": "conv4", "filters": 8}, "defenses": [{"name": "noise", "place": "query"}]}
    experiment = experiment_from(plain, "x")
    resolved = experiment.resolved()
    assert resolved["defenses"] == [{"name": "noise", "place": "query", "law": "gaussian", "scale": 1.0}]
    assert Experiment(**resolved).resolved() == resolved


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"server": {"rounds": 0}}, ["server.rounds", "greater than or equal to 1", "got 0"]),
        ({"server": {"fraction": 1.5}}, ["server.fraction", "less than or equal to 1", "got 1.5"]),
        (
            {"sever": {}},
            ["sever: unknown key 'sever', did you mean 'server'? Allowed are", "server, shares, targets, task"],
        ),
        (
            {"server": {"round": 3}},
            [
                "server.round: unknown key 'round', did you mean 'rounds'? "
                "Allowed are fraction, largest_norm, optimizer, rounds, start_from"
            ],
        ),
        (
            {"model": {"name": "mpl"}},
            ["model.name: unknown name 'mpl', did you mean 'mlp'? Allowed are", "conv4", "lenet"],
        ),
        ({"model": {"name": "mlp", "hidden": [0]}}, ["model.hidden.0", "greater than or equal to 1", "got 0"]),
        (
            {"model": {"name": "mlp", "width": 3}},
            ["model.width: unknown key 'width', allowed are activation, bias, hidden"],
        ),
        ({"defences": []}, ["defences: unknown key 'defences', did you mean 'defenses'? Allowed are attacks, data"]),
        ({"model": {"name": "mlp", "hiden": [3]}}, ["model.hiden: unknown key 'hiden', did you mean 'hidden'?"]),
        ({"server": {"optimizer": {"rat": 1}}}, ["server.optimizer.rat: unknown key 'rat', did you mean 'rate'?"]),
        (
            {"attacks": {"name": "query", "iteration": 3}},
            ["attacks.0.iteration: unknown key", "did you mean 'iterations'?"],
        ),
        ({"rule": {"name": "maml", "order": 3}}, ["rule.order", "1 or 2", "got 3"]),
        ({"data": {"name": "imagenet"}}, ["data.name: unknown name 'imagenet'", "mnist-5k"]),
        ({"defenses": [{"name": "noise", "place": "outer"}]}, ["defenses.0.place", "'support'", "got 'outer'"]),
        ({"defenses": [{"name": "noise", "place": "suport"}]}, ["defenses.0.place", "did you mean 'support'?"]),
        ({"defenses": [{"name": "noise", "scale": -1}]}, ["defenses.0.scale", "got -1"]),
        ({"model": {"name": "nowhere:Thing"}}, ["model.name: nowhere:Thing", "No module named"]),
        ({"model": {"name": "collections:OrderedDict"}}, ["model.name: ", "OrderedDict", "not a Model"]),
        ({"partition": {"held_out": 0.7, "non_members": 0.5}}, ["partition", "below 1"]),
        ({"record": {"rounds": 0}}, ["record.rounds", "at least 1", "got 0"]),
        ({"targets": {"round": 31}}, ["targets.round", "one of the 30", "got 31"]),
        ([1, 2], ["must be a mapping"]),
    ],
)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(plain, said):
    message = problem(plain)
    assert message.startswith("mine.yaml: ")
    for part in said:
        assert part in message


@pytest.mark.parametrize("defense", [{"name": "record-level"}, {"name": "gaussian", "unit": "learner"}])
def test_no_guarantee_is_accounted_for_images_that_two_learners_hold(defense):
    defenses = [{**defense, "clip": 1.0, "epsilon": 8.0}]
    plain = {"data": {"name": "digits"}, "rule": {"name": "fomaml"}, "defenses": defenses}
    experiment_from(plain, "mine.yaml")
    assert problem({**plain, "partition": {"overlap": 0.25}}) == (
        "mine.yaml: defenses: a guarantee is accounted for images that only one learner holds, so partition.overlap "
        "must be 0, got 0.25"
    )
    experiment_from({**plain, "defenses": ["sign"], "partition": {"overlap": 0.25}}, "mine.yaml")


def test_changes_reach_nested_keys_lists_and_the_short_names():
    experiment = experiment_from(
        {"defenses": [{"name": "noise"}]},
        "x",
        ["rounds=7", "model.hidden=[32]", "defenses.0.scale=0.5", "task.ways=3", "name=other"],
    )
    assert experiment.server.rounds == 7
    assert experiment.federation().model.hidden == (32,)
    assert experiment.federation().defenses[0].scale == 0.5
    assert (experiment.task.ways, experiment.name) == (3, "other")


@pytest.mark.parametrize("change", ["rounds", "=3", "defenses.4.scale=1", "name.x=1", "model=[", "rounds=many"])
def test_a_change_that_cannot_be_applied_is_named(change):
    assert change.partition("=")[0].rpartition(".")[2] in problem({"name": "a", "defenses": []}, change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("round=3", "unknown key 'round', did you mean 'rounds'? Allowed are"),
        ("sever.rounds=3", "unknown key 'sever', did you mean 'server'?"),
        ("server.round=3", "server.round: unknown key 'round', did you mean 'rounds'?"),
        ("model=mpl", "model.name: unknown name 'mpl', did you mean 'mlp'?"),
    ],
)
def test_a_change_of_what_does_not_exist_names_the_nearest(change, said):
    assert said in problem({}, change)


def test_a_change_leaves_what_it_was_given_as_it_was():
    plain = {"server": {"rounds": 3}}
    assert changed(plain, "rounds=4") == {"server": {"rounds": 4}}
    assert plain == {"server": {"rounds": 3}}


def test_the_simulation_key_counts_what_decides_the_numbers_and_nothing_else(tmp_path):
    key = experiment_from({"data": {"name": "mnist"}}, "x").simulation_key()
    for change in ("name=b", "targets.members=3", "engine.actors=1", f"data.data_dir={tmp_path}", "attacks=[]"):
        assert experiment_from({"data": {"name": "mnist"}}, "x", [change]).simulation_key() == key
    for change in ("seed=1", "rounds=2", "model.hidden=[3]", "defenses=[{name: noise}]", "task.ways=2"):
        assert experiment_from({"data": {"name": "mnist"}}, "x", [change]).simulation_key() != key


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "not YAML in line"),
        (b"a: &x [1]\nb: *x", "aliases are not allowed"),
        (b"seed: 1\nseed: 2", "not YAML in line 2: the key 'seed' stands there twice"),
        (b"#" * (MAX_FILE + 1), "more than the"),
        (b"\xff\xfe\x00", "not"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, said):
    path = tmp_path / "experiment.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_experiment(path)
    assert str(path) in str(caught.value)


def test_another_name_keeps_only_the_settings_that_it_has_too():
    template = yaml.safe_load((files("metaleak.deploy.config") / "templates" / "experiment.yaml").read_text())
    changes = ["model.name=conv4", "rule.name=fomaml", "attacks.1.name=span"]
    experiment = experiment_from({**template, "rule": {"name": "maml", "inner_steps": 3, "order": 2}}, "x", changes)
    assert experiment.model.settings == {}
    assert experiment.rule.settings == {"inner_steps": 3}
    assert experiment.attacks[1].settings == {}
    set_after = experiment_from(template, "x", ["model.name=lenet", "model.activation=tanh"])
    assert set_after.model.settings == {"activation": "tanh"}
    same = experiment_from({"model": {"name": "mlp", "hidden": [7]}}, "x", ["model.name=mlp"])
    assert same.model.settings == {"hidden": [7]}


def test_names_alone_are_short_for_what_they_name():
    short = {"data": "digits", "model": "lenet", "rule": "fomaml", "defenses": "noise", "attacks": ["span", "query"]}
    long = {
        "data": {"name": "digits"},
        "model": {"name": "lenet"},
        "rule": {"name": "fomaml"},
        "defenses": [{"name": "noise"}],
        "attacks": [{"name": "span"}, {"name": "query"}],
    }
    assert experiment_from(short, "x") == experiment_from(long, "x")
    assert experiment_from({}, "x", [f"{key}={value}" for key, value in short.items()]) == experiment_from(long, "x")
    assert experiment_from({"defenses": None, "attacks": None}, "x").attacks == ()
