{
  description = "Run instances of a Testground plan on any machine you can ssh to";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.05";

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      eachSystem =
        make:
        builtins.listToAttrs (map (system: { name = system; value = make system nixpkgs.legacyPackages.${system}; }) systems);

      # The named files and directories of the plan; a change anywhere else builds nothing anew.
      only =
        name: parts:
        let
          root = toString ./.;
          below = path: directory: builtins.substring 0 (builtins.stringLength directory + 1) path == "${directory}/";
        in
        builtins.path {
          inherit name;
          path = ./.;
          filter =
            path: type:
            let
              inside = builtins.substring (builtins.stringLength root + 1) (-1) path;
            in
            baseNameOf path != "__pycache__"
            && builtins.any (part: inside == part || below inside part || below part inside) parts;
        };

      version = (builtins.fromTOML (builtins.readFile ./pyproject.toml)).project.version;
      dependencies = ps: [ ps.asyncssh ps.fabric ps.invoke ps.pyyaml ps.rich ps.tomli ];

      # The example application: Python itself and a folder of its own, for every system in the same way.
      node =
        pkgs:
        pkgs.runCommand "node" { meta.mainProgram = "node"; } ''
          ${pkgs.python3}/bin/python3 -B ${only "node-source" [ "node" "testground" ]}/node/build.py \
            --python ${pkgs.python3}/bin/python3 "$out"
        '';

      # What can be started for which system. The derivations come along, so that they can be built later;
      # nothing is built for it.
      artifacts =
        pkgs:
        pkgs.writeText "artifacts.json" (
          builtins.toJSON {
            app = "node";
            systems = builtins.mapAttrs (_: packages: {
              drv = builtins.unsafeDiscardOutputDependency packages.node.drvPath;
              out = builtins.unsafeDiscardStringContext packages.node.outPath;
              program = "bin/${packages.node.meta.mainProgram}";
            }) self.packages;
          }
        );

      # What Testground's nix:generic starts for each instance, without arguments and wherever its daemon stands: the
      # launcher for this plan as it was built. With arguments: these tasks on the plan one stands in.
      remote-runner =
        pkgs:
        let
          python = pkgs.python3.withPackages dependencies;
          plan = only "plan" [
            "composition.toml" "fabfile.py" "fabric.yaml" "inventory.yaml" "manifest.toml" "pyproject.toml"
            "node" "remote_runner" "tasks" "testground" "flake.nix" "flake.lock" "exec-go" "go.mod"
          ];
        in
        pkgs.runCommand "remote-runner-${version}" { meta.mainProgram = "remote-runner"; } ''
          plan="$out/plan"
          info="$plan/testground_remote_runner-${version}.dist-info"
          mkdir -p "$out/bin"
          cp -r ${plan} "$plan"
          chmod -R u+w "$plan"
          mkdir "$info"
          printf 'Metadata-Version: 2.1\nName: testground-remote-runner\nVersion: ${version}\n' >"$info/METADATA"
          # What runs on hosts, for every system of this flake.
          export HOME="$TMPDIR" PATH="${pkgs.go}/bin:$PATH"
          export REMOTE_RUNNER_CACHE_DIR="$TMPDIR/cache" REMOTE_RUNNER_RUNTIME_DIR="$TMPDIR/run"
          cp -r ${only "agent" [ "agent" ]}/agent "$plan/agent"
          (cd "$plan" && ${python}/bin/python3 -B -m remote_runner.connection.bootstrap.program \
            --release remote_runner/agents ${builtins.concatStringsSep " " systems})
          chmod -R u+w "$plan/agent"
          rm -r "$plan/agent"
          ${python}/bin/python3 -m compileall -q --invalidation-mode unchecked-hash -s "$plan" "$plan"
          cd ${only "launcher" [ "exec-go" "go.mod" ]}
          export GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0
          ${pkgs.go}/bin/go build -trimpath -o "$out/bin/remote-runner" -ldflags "-X main.linkedPlan=$plan \
            -X main.linkedPython=${python}/bin/python3 -X main.linkedArtifacts=${artifacts pkgs}" ./exec-go
        '';

      tools =
        ps:
        dependencies ps
        ++ [ ps.hypothesis ps.mypy ps.pytest ps.pytest-xdist ps.setuptools ps.types-pyyaml ps.websockets ];
    in
    {
      packages = eachSystem (
        system: pkgs: {
          node = node pkgs;
          remote-runner = remote-runner pkgs;
          default = self.packages.${system}.remote-runner;
        }
      );

      devShells = eachSystem (
        system: pkgs: {
          default = pkgs.mkShellNoCC {
            packages = [ (pkgs.python3.withPackages tools) pkgs.git pkgs.go pkgs.openssh pkgs.ruff pkgs.shellcheck ];
          };
        }
      );

      # What needs neither hosts nor a network; the rest is `make test`.
      checks = eachSystem (
        system: pkgs:
        let
          python = "${pkgs.python3.withPackages tools}/bin/python3";
          check =
            name: command:
            pkgs.runCommand name { } ''
              cp -r ${self} plan
              chmod -R u+w plan
              cd plan
              ${command}
              touch "$out"
            '';
        in
        {
          inherit (self.packages.${system}) node remote-runner;
          ruff = check "ruff" "${pkgs.ruff}/bin/ruff check . && ${pkgs.ruff}/bin/ruff format --check .";
          mypy = check "mypy" "${python} -m mypy";
          go = check "go" ''
            export HOME="$TMPDIR" GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0
            (cd agent && ${pkgs.go}/bin/go vet ./... && test -z "$(${pkgs.go}/bin/gofmt -l .)")
          '';
          pytest = check "pytest" "${python} -m pytest tests/testground tests/node";
        }
      );
    };
}
