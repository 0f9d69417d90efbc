"""`framefold profile` and the profiles themselves. Run: .venv/bin/python -m pytest tests/test_profiles.py"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from framefold.errors import UserError
from framefold.params.profiles import apply_profile
from framefold.params.validation import validate_all

ROOT = Path(__file__).resolve().parents[1]
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return tmp_path


def params_of(project: Path) -> dict[str, Any]:
    return yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))


def framefold(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from framefold.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_gives_valid_params(project, name):
    apply_profile(name, [], project)
    validate_all(params_of(project))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_holds_whatever_was_there_before(project, name):
    """What a profile states is in params.yaml afterwards, even when another profile was merged first."""
    for earlier in PROFILES:
        apply_profile(earlier, [], project)
    apply_profile(name, [], project)
    stated = yaml.safe_load((project / "profiles" / f"{name}.yaml").read_text(encoding="utf-8"))
    now = params_of(project)
    assert [key for key in stated if not contains(now[key], stated[key])] == []


def contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    return whole == part


def test_comments_and_order_stay(project):
    before = (project / "params.yaml").read_text(encoding="utf-8")
    apply_profile("scratch", ["finetune.epochs=7"], project)
    after = (project / "params.yaml").read_text(encoding="utf-8")
    comments = [line.partition("#")[2] for line in before.splitlines() if "#" in line and "small:" not in line]
    assert [comment for comment in comments if f"#{comment}" not in after] == []
    top = [line for line in before.splitlines() if line[:1].isalpha()]
    assert [line.split(":")[0] for line in after.splitlines() if line[:1].isalpha()] == [t.split(":")[0] for t in top]


def test_merging_twice_is_merging_once(project):
    apply_profile("smoke", [], project)
    once = (project / "params.yaml").read_bytes()
    apply_profile("smoke", [], project)
    assert (project / "params.yaml").read_bytes() == once


def test_encoders_data_archs_and_folds_are_replaced_whole(project):
    apply_profile("wechat", [], project)
    assert set(params_of(project)["encoders"]) == {"vit_b16", "vit_l14"}


def test_the_scratch_command_of_the_readme_works(project):
    """The three values that change with one's own data are set by exactly these words."""
    overrides = ["data.root=data/realset", "text.vocab=VOCAB", "encoders.frozen.weights=FILE"]
    assert framefold(project, "profile", "scratch", *overrides).returncode == 0
    params = params_of(project)
    assert params["data"] == {"root": "data/realset", "generated": [], "categories": None}
    assert params["text"]["vocab"] == "VOCAB"
    assert params["encoders"]["frozen"]["weights"] == "FILE"
    assert params["student"]["encoder"] == params["teacher"]["encoder"] == "frozen"


def test_override_values_are_typed(project):
    apply_profile("smoke", ["folds=[1]", "finetune.lr.head=3e-4", "text.vocab=null", "pretrain.per_fold=true"], project)
    params = params_of(project)
    assert params["folds"] == [1]
    assert float(params["finetune"]["lr"]["head"]) == 3e-4
    assert params["text"]["vocab"] is None
    assert params["pretrain"]["per_fold"] is True


def test_constructor_arguments_of_an_encoder_may_be_new(project):
    apply_profile("scratch", ["encoders.frozen.kwargs.drop_rate=0.1"], project)
    assert params_of(project)["encoders"]["frozen"]["kwargs"] == {"pad_type": "same", "drop_rate": 0.1}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["finetune.epoch=3"], "finetune.epochs"),
        (["finetun.epochs=3"], "finetune.epochs"),
        (["encoders.frozzen.weights=x"], "encoders.frozen.weights"),
        (["seed.value=3"], "no keys inside"),
        (["finetune.epochs"], "key=value"),
        (["finetune.epochs=many"], "finetune.epochs"),
        (["folds=[0, 9]"], "split.n_folds"),
        (["folds=[0"], "not YAML"),
    ],
)
def test_a_wrong_override_is_named_and_leaves_params_untouched(project, overrides, told):
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        apply_profile("scratch", overrides, project)
    assert told in str(caught.value)
    assert (project / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml", "profiles"]


def test_an_unknown_key_in_a_profile_is_refused(project):
    (project / "profiles" / "own.yaml").write_text("finetune: {epochz: 3}\n")
    with pytest.raises(UserError, match=r"own: unknown key finetune\.epochz; did you mean finetune\.epochs\?"):
        apply_profile("own", [], project)


def test_an_unknown_profile_ends_in_one_line_that_lists_those_there_are(project):
    result = framefold(project, "profile", "wechta")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert all(name in result.stderr for name in PROFILES)


def test_help_and_profile_need_no_heavy_import(project):
    """`framefold profile` answers at once: neither torch nor pandas nor the data readers are loaded."""
    code = (
        "import sys; sys.argv = ['framefold', 'profile', 'smoke']; from framefold.cli import main; main();"
        "assert not {'torch', 'pandas', 'framefold.data'} & set(sys.modules), sorted(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
