"""`fab build`."""

from __future__ import annotations

from pathlib import Path

from tests.tasks.fab import PlanDirectory


def test_build_prints_the_artifact_alone(plan: PlanDirectory) -> None:
    ran = plan.ok("build")
    path = Path(ran.out.removesuffix("\n"))
    assert path.read_text() == "#!/bin/sh\necho hello\n"
    assert "(builder command: app.builder is command)" in ran.words
    (artifact,) = plan.ok("build", "--json").data
    assert artifact["program"] == "greeter"
    assert len(artifact["hash"]) == 32


def test_build_dry_run_prints_what_then_runs(plan: PlanDirectory) -> None:
    plan.write("show.sh", '#!/bin/sh\npwd -P >"$2.seen"\nprintf "%s\\n" "$@" >>"$2.seen"\ncp greeter.sh "$2"\n').chmod(
        0o755
    )
    plan.inventory("app: {name: greeter, builder: command, command: \"./show.sh 'two words' {out} {goarch}\"}\n")
    (planned,) = plan.ok("build", "--arch", "aarch64-linux", "--dry-run").data
    assert not list(plan.path.glob("*.seen"))
    out = plan.ok("build", "--arch", "aarch64-linux").out.strip()
    directory, *words = Path(f"{out}.seen").read_text().splitlines()
    assert directory == planned["directory"]
    assert ["./show.sh", *words] == [out if word == planned["out"] else word for word in planned["argv"]]
    assert words == ["two words", out, "arm64"]
