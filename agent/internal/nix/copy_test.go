package nix

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
	"remote-runner/agent/internal/wiretest"
)

const (
	app = "0123456789abcdfghijklmnpqrsvwxyz-app"
	out = "/nix/store/" + app
	drv = out + ".drv"
)

// A nix-store that has the paths of the file `valid`, and whose server says what it hears.
const nixStore = `#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >>asked
case "$*" in
    "--serve --write") [ ! -e broken ] || { echo "error: broken" >&2; exit 1; }; exec cat ;;
    *" -r $(cat unbuildable 2>/dev/null)") seq 1 50 >&2; exit 7 ;;
    *.drv) ;;
    *) grep -q "$7" valid || { echo "error: not valid" >&2; exit 1; } ;;
esac
ln -sf "$7" "$5"
`

// host is one with that nix-store; the directory has its files.
func host(t *testing.T) (*wiretest.Client, string, base.Directory) {
	t.Helper()
	home, place := base.Directory(t.TempDir()), t.TempDir()
	write(t, filepath.Join(place, "nix-store"), nixStore)
	write(t, filepath.Join(place, "valid"), "")
	keeper := process.NewKeeper(nil)
	t.Cleanup(keeper.Close)
	service := &Service{
		Base: home, Processes: keeper, Home: "/",
		Environ: []string{"PATH=" + place + ":/usr/bin:/bin", "NIX_STATE_DIR=" + place, "NIX_REMOTE=daemon"},
	}
	return wiretest.New(t, func(ctx context.Context, stream *wire.Stream, open wire.Message) error {
		return service.Copy(ctx, stream, open)
	}), place, home
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// served asks for a path on a host whose server begins, which only root's does here.
func served(t *testing.T, client *wiretest.Client, request map[string]any) *wiretest.Stream {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root has access to this store")
	}
	stream := client.Open(request)
	if said := stream.Receive(); said["asks"] == nil {
		t.Fatalf("%v", said)
	}
	if said := stream.Receive(); said["serve"] != Root || said["user"] != "root" {
		t.Fatalf("%v", said)
	}
	stream.Write(0, []byte("hello"))
	if said := stream.Read(1, 5); said != "hello" {
		t.Fatalf("the server says %q", said)
	}
	return stream
}

func TestWhatCameIsRootedWhileTheServerRuns(t *testing.T) {
	client, place, home := host(t)
	stream := served(t, client, map[string]any{"verb": "nix", "out": out})
	write(t, filepath.Join(place, "valid"), out+"\n")
	stream.Send(map[string]any{"realise": true})
	if said := stream.Receive(); said["rooted"] != string(home) {
		t.Fatalf("%v", said)
	}
	if failure := stream.Failure(); failure != nil {
		t.Errorf("%v", failure)
	}
	if target, err := os.Readlink(filepath.Join(string(home), "nix/roots", app)); err != nil || target != out {
		t.Errorf("%q, %v", target, err)
	}
}

func TestADerivationIsBuiltBeforeItsOutputIsRooted(t *testing.T) {
	client, place, home := host(t)
	stream := served(t, client, map[string]any{"verb": "nix", "out": out, "drv": drv, "substitute": true})
	write(t, filepath.Join(place, "valid"), out+"\n")
	stream.Send(map[string]any{"realise": true})
	if said := stream.Receive(); said["rooted"] != string(home) {
		t.Fatalf("%v", said)
	}
	asked, _ := os.ReadFile(filepath.Join(place, "asked"))
	if !strings.Contains(string(asked), "--option substitute true --add-root "+string(home)+"/nix/.build-") {
		t.Errorf("%s", asked)
	}
	if failure := stream.Failure(); failure != nil {
		t.Errorf("%v", failure)
	}
	if left, _ := filepath.Glob(filepath.Join(string(home), "nix", ".build-*")); len(left) > 0 {
		t.Errorf("%v", left)
	}
}

func TestABuildThatFailsTellsItsLastLines(t *testing.T) {
	client, place, _ := host(t)
	write(t, filepath.Join(place, "unbuildable"), drv)
	stream := served(t, client, map[string]any{"verb": "nix", "out": out, "drv": drv})
	stream.Send(map[string]any{"realise": true})
	said := stream.Receive()
	lines := strings.Split(said["said"].(string), "\n")
	if said["unbuilt"] != 7.0 || len(lines) != longestLog || lines[len(lines)-1] != "50" {
		t.Errorf("%v", said)
	}
}

func TestAServerThatEndsIsToldWithItsWords(t *testing.T) {
	client, place, _ := host(t)
	write(t, filepath.Join(place, "broken"), "")
	if os.Getuid() != 0 {
		t.Skip("only root has access to this store")
	}
	stream := client.Open(map[string]any{"verb": "nix", "out": out})
	if said := []any{stream.Receive()["asks"], stream.Receive()["serve"]}; said[0] == nil || said[1] != Root {
		t.Fatalf("%v", said)
	}
	if failure := stream.Failure(); failure["error"] != "nix" || failure["text"] != "error: broken" {
		t.Errorf("%v", failure)
	}
}

func TestAClientThatGoesEndsTheServer(t *testing.T) {
	client, place, _ := host(t)
	write(t, filepath.Join(place, "nix-store"), strings.Replace(nixStore, "exec cat", "echo $$ >pid; exec cat", 1))
	stream := served(t, client, map[string]any{"verb": "nix", "out": out})
	pid, err := os.ReadFile(filepath.Join(place, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	stream.Close()
	server := filepath.Join("/proc", strings.TrimSpace(string(pid)))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(server); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it is still there")
		}
	}
}

func TestOnlyStorePathsAreAskedFor(t *testing.T) {
	client, _, _ := host(t)
	for _, path := range []string{"", "/etc", "/nix/store/short-app", out + "/bin", out + "\n", "--help"} {
		if failure := client.Open(map[string]any{"verb": "nix", "out": path}).Failure(); failure["error"] != "breach" {
			t.Errorf("%q: %v", path, failure)
		}
	}
}

func TestADaemonTellsWhomItTrusts(t *testing.T) {
	place := t.TempDir()
	nix := filepath.Join(place, "nix")
	keeper := process.NewKeeper(nil)
	t.Cleanup(keeper.Close)
	service := &Service{Processes: keeper, Environ: []string{"PATH=/usr/bin:/bin"}}
	for script, want := range map[string][2]string{
		"echo Store URL: daemon": {Trusted, ""},
		"echo Trusted: 0":        {Untrusted, ""},
		"echo ignoring the setting: tester is not a trusted user >&2": {Untrusted, ""},
		"echo one >&2; echo error: not you >&2; exit 1":               {Refused, "error: not you"},
	} {
		write(t, nix, "#!/bin/sh\n"+script+"\n")
		access, why := service.askDaemon(context.Background(), nix)
		if got := [2]string{access, why}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q", script, got)
		}
	}
}

func TestAccessWithoutADaemonIsTheOwners(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root has all access")
	}
	place := t.TempDir()
	keeper := process.NewKeeper(nil)
	t.Cleanup(keeper.Close)
	service := &Service{Processes: keeper, Environ: []string{"NIX_STATE_DIR=" + place, "NIX_REMOTE=daemon"}}
	if access, _ := service.Access(context.Background(), "/usr/bin/nix-store"); access != Foreign {
		t.Errorf("%s", access)
	}
	socket, err := net.Listen("unix", filepath.Join(place, "socket"))
	if err != nil {
		t.Skip(err)
	}
	defer socket.Close()
	service.Environ = append(service.Environ, "NIX_DAEMON_SOCKET_PATH="+filepath.Join(place, "socket"))
	if access, _ := service.Access(context.Background(), "/nowhere/nix-store"); access != Refused {
		t.Errorf("%s", access)
	}
}
