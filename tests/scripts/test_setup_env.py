"""The set-up that test.sh and demo.sh do by themselves; a stub stands for Python where it would install something."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Tells a version, "makes" environments and notes what it is called with.
STUB = """#!/usr/bin/env bash
printf '%s|%s\\n' "$0" "$*" >> "$CALLS"
case "$*" in
    "-c "*) echo "${STUB_VERSION:-3.12.4}" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; printf '%s' "$VENV_ERROR"; [ -z "$VENV_ERROR" ] ;;
    "-m pip "*) printf '%s' "$PIP_ERROR"; [ -z "$PIP_ERROR" ] ;;
esac
"""

TESTS = f"-m pytest --numprocesses {min(os.cpu_count() or 1, 4)} --dist loadfile --max-worker-restart 0"


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Checkout:
    """A copy of the scripts in a path with a space, with stubs first on PATH, used from another working directory."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a check out"
        self.elsewhere = folder
        self.calls_file = folder / "calls"
        (self.root / "bundles" / "first_bundle").mkdir(parents=True)
        (self.root / "bundles" / "second_bundle").mkdir()
        (self.root / "scripts").mkdir()
        commands = ("test.sh", "demo.sh", "monai_label.sh", "install_pacs_programs.sh")
        for name in ("setup_env.sh", "check_env.py", *commands):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        (self.root / "requirements.txt").write_text("fire==0.0.0\n")
        self.stubs = folder / "stubs"
        for name in ("python3", "python3.11", "python3.12", "python3.13", "apt-get"):
            executable(self.stubs / name, STUB)
        executable(self.stubs / "sudo", '#!/bin/sh\nexec "$@"\n')
        executable(
            self.stubs / "dpkg-query", '#!/bin/sh\ncase "$ABSENT " in *"$3 "*) exit 1;; esac; echo "ok installed"\n'
        )

    @property
    def environment(self) -> Path:
        return self.root / ".venv"

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.root / "scripts" / script, *arguments],
            cwd=self.elsewhere,
            env={"PATH": f"{self.stubs}:{os.environ['PATH']}", "CALLS": str(self.calls_file)} | variables,
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        """What Python was called with since the last question."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [line.partition("|")[2] for line in lines]

    def installs(self) -> bool:
        return any(call.startswith("-m pip install") for call in self.calls())


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def check_env() -> ModuleType:
    return importlib.import_module("check_env")


def test_first_call_installs_then_runs_everything(checkout: Checkout) -> None:
    result = checkout.run("test.sh", "-x", "-k", "a name")
    assert result.returncode == 0, result.stderr
    calls = [call for call in checkout.calls() if not call.startswith("-c")]
    assert calls == [
        f"-m venv {checkout.environment}",
        f"-m pip install --requirement {checkout.root}/requirements.txt",
        f"-m pip install --no-deps --no-build-isolation --editable {checkout.root}",
        f"{checkout.root}/scripts/check_env.py",
        "-m ruff check .",
        "-m ruff format --check .",
        f"{TESTS} -x -k a name",
    ]


def test_environment_is_reused_until_the_requirements_change(checkout: Checkout) -> None:
    checkout.run("test.sh")
    assert checkout.installs()
    checkout.run("test.sh")
    assert not checkout.installs()
    (checkout.root / "requirements.txt").write_text("fire==0.0.1\n")
    checkout.run("test.sh")
    assert checkout.installs()


def test_environment_is_made_anew_for_another_interpreter_or_place(checkout: Checkout) -> None:
    python = str(checkout.stubs / "python3")
    checkout.run("test.sh", PYTHON=python)
    checkout.calls()
    checkout.run("test.sh", PYTHON=python)
    assert not checkout.installs()
    executable(checkout.stubs / "other", STUB.replace("3.12.4", "3.13.1"))
    checkout.run("test.sh", PYTHON=str(checkout.stubs / "other"))
    assert checkout.installs()
    checkout.root = checkout.root.rename(checkout.elsewhere / "moved")
    checkout.run("test.sh")
    assert checkout.installs()


def test_half_finished_setup_is_done_again(checkout: Checkout) -> None:
    assert checkout.run("test.sh", PIP_ERROR="broken").returncode != 0
    checkout.calls()
    assert checkout.run("test.sh").returncode == 0
    assert checkout.installs()


def test_environment_of_somebody_else_is_left_alone(checkout: Checkout) -> None:
    (checkout.environment / "bin").mkdir(parents=True)
    result = checkout.run("test.sh")
    assert result.returncode == 1
    assert "was not made by this script" in result.stderr
    assert "USE_CURRENT_ENV=1" in result.stderr
    assert (checkout.environment / "bin").is_dir()


@pytest.mark.parametrize("version", ["2.7.18", "3.9.18", "3.10.13", "3.14.0"])
def test_given_python_out_of_range(checkout: Checkout, version: str) -> None:
    result = checkout.run("test.sh", PYTHON=str(checkout.stubs / "python3"), STUB_VERSION=version)
    assert result.returncode == 1
    assert f"is Python {version}, but 3.11, 3.12 or 3.13 is needed" in result.stderr
    assert not checkout.environment.exists()


def test_given_python_that_does_not_run(checkout: Checkout) -> None:
    result = checkout.run("test.sh", PYTHON="no-such-python")
    assert result.returncode == 1
    assert "PYTHON=no-such-python does not run" in result.stderr


def made_by(checkout: Checkout) -> Path:
    """The interpreter that made the environment."""
    return Path(next(line for line in checkout.calls_file.read_text().splitlines() if "-m venv" in line).split("|")[0])


def test_first_interpreter_in_range_is_taken(checkout: Checkout) -> None:
    assert checkout.run("test.sh").returncode == 0
    assert made_by(checkout) == checkout.stubs / "python3"


def test_interpreters_out_of_range_are_passed_over(checkout: Checkout) -> None:
    executable(checkout.stubs / "python3", STUB.replace("3.12.4", "3.9.2"))
    executable(checkout.stubs / "python3.12", "#!/usr/bin/env bash\nexit 127\n")  # as a pyenv shim does
    executable(checkout.stubs / "python3.13", STUB.replace("3.12.4", "3.13.7"))
    assert checkout.run("test.sh").returncode == 0
    assert made_by(checkout) == checkout.stubs / "python3.13"


def test_no_interpreter_in_range(checkout: Checkout) -> None:
    result = checkout.run("demo.sh", STUB_VERSION="3.10.1")
    assert result.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed, found: 3.10.1" in result.stderr


def test_no_disk_space(checkout: Checkout) -> None:
    executable(checkout.stubs / "df", "#!/bin/sh\necho Filesystem M Used Available\necho /dev/a 9000 8988 12 99% /\n")
    result = checkout.run("test.sh")
    assert result.returncode == 1
    assert "has 12 MB of free disk space, but 4000 MB are needed" in result.stderr
    assert not checkout.installs()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Retrying after connection broken by 'NewConnectionError'", "the package index cannot be reached"),
        ("something else", "the set-up failed. Full log:"),
    ],
)
def test_failed_install_shows_its_output_and_the_cause(checkout: Checkout, error: str, message: str) -> None:
    result = checkout.run("test.sh", PIP_ERROR=error)
    assert result.returncode == 1
    assert error in result.stderr
    assert message in result.stderr


def test_python_without_venv_module(checkout: Checkout) -> None:
    result = checkout.run("test.sh", VENV_ERROR="not created because ensurepip is not available")
    assert result.returncode == 1
    assert "apt install python3-venv" in result.stderr


def test_no_network(checkout: Checkout) -> None:
    """The real pip against a port where nobody listens."""
    result = checkout.run(
        "test.sh",
        PYTHON=sys.executable,
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
        PIP_NO_CACHE_DIR="1",
    )
    assert result.returncode == 1
    assert "the package index cannot be reached: no network?" in result.stderr


def test_current_environment_is_used_and_nothing_made() -> None:
    """This checkout, in the environment of this very test."""
    command = 'source "$1/scripts/setup_env.sh" && command -v python'
    environ = os.environ | {"USE_CURRENT_ENV": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", command, "-", ROOT], env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(Path(sys.executable).parent / "python")


def test_current_environment_out_of_range(checkout: Checkout) -> None:
    executable(checkout.stubs / "python", STUB)
    result = checkout.run("test.sh", USE_CURRENT_ENV="1", STUB_VERSION="3.10.2")
    assert result.returncode == 1
    assert "`python` is 3.10.2: 3.11 to 3.13 is needed" in result.stderr


def test_current_environment_names_what_is_missing(checkout: Checkout) -> None:
    executable(checkout.stubs / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (checkout.root / "requirements.txt").write_text("fire==0.7.1\nno-such-package==1.0  # why\n")
    result = checkout.run("test.sh", USE_CURRENT_ENV="1")
    assert result.returncode == 1
    assert "lacks no-such-package==1.0." in result.stderr
    assert result.stdout == "", "went on without it"
    assert not checkout.environment.exists()


def test_packages_that_are_missing_or_of_another_version(check_env: ModuleType) -> None:
    missing, others = check_env.differences({"fire": "0.0.1", "no-such-package": "2"})
    assert missing == ["no-such-package==2"]
    assert len(others) == 1
    assert others[0].endswith("(tested with 0.0.1)")


def test_modules_that_do_not_import(check_env: ModuleType) -> None:
    assert check_env.broken_modules(("json", "no_such_module")) == [
        "import no_such_module: No module named 'no_such_module'"
    ]


def test_shared_of_another_checkout_is_noticed(check_env: ModuleType, tmp_path: Path) -> None:
    assert check_env.shared_is_of(ROOT)
    assert not check_env.shared_is_of(tmp_path)


def test_demo_hands_its_arguments_on(checkout: Checkout) -> None:
    for arguments in (["second_bundle", "--output_dir", "a folder"], ["--output_dir=here"], []):
        assert checkout.run("demo.sh", *arguments).returncode == 0
        assert checkout.calls()[-1] == " ".join([f"{checkout.root}/scripts/demo.py", *arguments])


def test_demo_of_an_unknown_bundle_lists_the_known_ones(checkout: Checkout) -> None:
    result = checkout.run("demo.sh", "third_bundle")
    assert result.returncode == 1
    assert "no bundle third_bundle" in result.stderr
    assert "first_bundle\n  second_bundle\n" in result.stderr
    assert checkout.calls() == []


def test_monai_label_has_an_environment_of_its_own(checkout: Checkout) -> None:
    requirements = "fire==0.0.0\nserver==1.0  # --no-deps\nother==2.0   # --no-deps\n"
    (checkout.root / "requirements-monailabel.txt").write_text(requirements)
    result = checkout.run("monai_label.sh", "a folder", "name=model.pt", USE_CURRENT_ENV="1")
    assert result.returncode == 0, result.stderr
    calls = [call for call in checkout.calls() if not call.startswith("-c")]
    assert calls[0] == f"-m venv {checkout.root}/.venv-monailabel"
    assert calls[1].startswith("-m pip install --requirement /")
    assert calls[2:] == [
        "-m pip install --no-deps server==1.0 other==2.0",
        "-m monai_label.serve a folder name=model.pt",
    ]
    assert not checkout.environment.exists()
    assert checkout.run("monai_label.sh", "--set_up").returncode == 0
    assert [call for call in checkout.calls() if not call.startswith("-c")] == []


def test_monai_label_runs_on_fewer_versions(checkout: Checkout) -> None:
    (checkout.root / "requirements-monailabel.txt").touch()
    result = checkout.run("monai_label.sh", "--set_up", STUB_VERSION="3.13.1")
    assert result.returncode == 1
    assert "Python 3.11 or 3.12 is needed, found: 3.13.1" in result.stderr


def test_continuous_integration_runs_the_test_script(checkout: Checkout) -> None:
    (checkout.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", checkout.root / ".ci")
    (checkout.root / "requirements-monailabel.txt").touch()
    assert checkout.run("../.ci/run", "-x", ABSENT="dcmtk", VIEWER_TESTS="0").returncode == 0
    calls = checkout.calls()
    assert "install --yes --no-install-recommends dcmtk" in calls
    assert f"-m venv {checkout.root}/.venv-monailabel" in calls
    assert calls[-1] == f"{TESTS} -x"
    assert checkout.run("../.ci/run", "-x", ABSENT="dcmtk", PACS_TESTS="0").returncode == 0
    assert "update" not in checkout.calls()


def test_continuous_integration_ends_where_an_environment_cannot_be_made(checkout: Checkout) -> None:
    (checkout.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", checkout.root / ".ci")
    (checkout.root / "requirements-monailabel.txt").touch()
    none = {"VIEWER_TESTS": "0", "STUB_VERSION": "3.13.1"}
    failed = checkout.run("../.ci/run", **none)
    assert failed.returncode == 1
    assert "Python 3.11 or 3.12 is needed" in failed.stderr
    assert TESTS not in checkout.calls()
    assert checkout.run("../.ci/run", **none, MONAI_LABEL_TESTS="0").returncode == 0


def test_only_programs_that_are_missing_are_installed(checkout: Checkout) -> None:
    result = checkout.run("install_pacs_programs.sh", ABSENT="orthanc plastimatch")
    assert (result.returncode, "Installing orthanc plastimatch ..." in result.stdout) == (0, True), result.stderr
    calls = [call for call in checkout.calls() if not call.startswith("-c")]
    assert calls[-3:-1] == ["update", "install --yes --no-install-recommends orthanc plastimatch"]
    assert checkout.run("install_pacs_programs.sh").returncode == 0
    assert "update" not in checkout.calls()
