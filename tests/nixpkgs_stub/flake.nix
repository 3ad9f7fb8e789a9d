# Stands in for nixpkgs where it cannot be downloaded: the few attributes that this project's flake.nix uses, made of
# programs that tests/nix_plan.py puts beside this file: SYSTEM/{busybox,python3,go} and site-packages/PACKAGE. They are no
# pure store paths: Python takes its standard library from /usr/lib, as the system's own does, and go is the system's own.
{
  outputs =
    { self }:
    let
      forSystem =
        system:
        let
          here = ./. + "/${system}";
          # A system without programs of its own can be evaluated, not built.
          buildable = builtins.pathExists here;
          busybox = "${here}/busybox"; # in a directory: it takes its own name for the applet's
          # Where a processor's programs find their libraries when an emulator runs them for a build.
          sysroot = if builtins.pathExists (here + "/sysroot") then { QEMU_LD_PREFIX = builtins.readFile (here + "/sysroot"); } else { };
          applets = "basename cat chmod cp dirname env find grep head ln ls mkdir mv rm sed sort touch tr uname";

          raw =
            name: env: script:
            derivation (
              sysroot
              // {
                inherit name system script;
                passAsFile = [ "script" ] ++ (env.passAsFile or [ ]);
                builder = if buildable then busybox else "/bin/sh";
                args = if buildable then [ "sh" "-ec" ". \"$scriptPath\"" ] else [ "-c" "exit 1" ];
              }
              // removeAttrs env [ "meta" "passAsFile" ]
            )
            // {
              meta = env.meta or { };
            };

          tools = raw "tools" { } ''
            ${busybox} mkdir -p "$out/bin"
            for applet in ${applets}; do ${busybox} ln -s ${busybox} "$out/bin/$applet"; done
          '';

          runCommand =
            name: env:
            raw name ((if buildable then { PATH = "${tools}/bin"; } else { }) // env);

          empty = name: runCommand name { } ''mkdir "$out"'';

          python3 = runCommand "python3" { } ''
            mkdir -p "$out/bin"
            cp ${if buildable then here + "/python3" else "nothing"} "$out/bin/python3"
          '';

          # What this project's own .venv has of each, with all that it requires.
          packages = builtins.listToAttrs (
            map (name: { inherit name; value = "${./. + "/site-packages/${name}"}"; }) [
              "asyncssh" "fabric" "hypothesis" "invoke" "mypy" "pytest" "pytest-xdist" "pyyaml" "rich" "setuptools"
              "tomli" "types-pyyaml" "websockets"
            ]
          );
        in
        {
          inherit runCommand;
          writeText = name: text: runCommand name { inherit text; passAsFile = [ "text" ]; } ''cp "$textPath" "$out"'';
          mkShellNoCC = attributes: runCommand "shell" { needs = attributes.packages; } ''mkdir "$out"'';
          python3 = python3 // {
            withPackages =
              choose:
              runCommand "python3-env" { } ''
                mkdir -p "$out/bin"
                printf '#!/bin/sh\nPYTHONPATH=%s''${PYTHONPATH:+:$PYTHONPATH} exec %s "$@"\n' \
                  ${builtins.concatStringsSep ":" (choose packages)} ${python3}/bin/python3 >"$out/bin/python3"
                chmod 755 "$out/bin/python3"
              '';
          };
          go = runCommand "go" { } ''
            mkdir -p "$out/bin"
            cp ${if builtins.pathExists (here + "/go") then here + "/go" else "nothing"} "$out/bin/go"
          '';
          git = empty "git";
          openssh = empty "openssh";
          ruff = empty "ruff";
          shellcheck = empty "shellcheck";
        };
    in
    {
      legacyPackages = builtins.listToAttrs (
        map (system: { name = system; value = forSystem system; }) [
          "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin"
        ]
      );
    };
}
