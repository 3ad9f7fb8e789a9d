package files

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"remote-runner/agent/internal/wire"
	"remote-runner/agent/internal/wiretest"
)

func serve(t *testing.T) (home string, client *wiretest.Client) {
	service := &Service{Home: t.TempDir()}
	return service.Home, wiretest.New(t, func(ctx context.Context, stream *wire.Stream, open wire.Message) error {
		if strings.Contains(string(open.Head), `"put"`) {
			return service.Put(ctx, stream, open)
		}
		return service.Get(ctx, stream, open)
	})
}

func put(t *testing.T, client *wiretest.Client, path string, mode any, text string) (written any, failure map[string]any) {
	t.Helper()
	stream := client.Open(map[string]any{"verb": "put", "path": path, "name": "named", "mode": mode})
	stream.Write(0, []byte(text))
	stream.End(0)
	said := stream.Receive()
	return said["written"], stream.Failure()
}

func expect(t *testing.T, path, text string, mode uint32) {
	t.Helper()
	found, err := os.ReadFile(path)
	if err != nil || string(found) != text {
		t.Errorf("%s: %d bytes, %v", path, len(found), err)
	}
	if info, err := os.Stat(path); err != nil || bitsOf(info) != mode {
		t.Errorf("%s: mode %o", path, bitsOf(info))
	}
	if entries, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".remote-runner-*")); len(entries) > 0 {
		t.Errorf("%v is left", entries)
	}
}

func TestPut(t *testing.T) {
	syscall.Umask(0o022)
	home, client := serve(t)
	long := strings.Repeat("long", 1<<20)
	for _, test := range []struct {
		path    string
		mode    any
		written string
		want    uint32
	}{
		{"new", nil, "new", 0o644},
		{"new", 0o4751, "new", 0o4751},
		{"new", nil, "new", 0o4751}, // as it was
		{filepath.Join(home, "new"), 0o600, "new", 0o600},
		{"", 0o644, "", 0},
		{"folder", 0o640, "folder/named", 0o640},
	} {
		os.Mkdir(filepath.Join(home, "folder"), 0o755)
		written, failure := put(t, client, test.path, test.mode, long)
		if test.written == "" {
			if failure["error"] != "breach" {
				t.Errorf("%q: failed by %v", test.path, failure)
			}
			continue
		}
		if path := filepath.Join(home, test.written); written != path || failure != nil {
			t.Errorf("%q: %v, failed by %v", test.path, written, failure)
		} else {
			expect(t, path, long, test.want)
		}
	}
	os.Symlink("new", filepath.Join(home, "link"))
	put(t, client, "link", nil, "by the link")
	expect(t, filepath.Join(home, "new"), "by the link", 0o600)
	if _, failure := put(t, client, "nowhere/file", nil, "x"); failure["error"] != "room" || failure["path"] != filepath.Join(home, "nowhere/file") {
		t.Errorf("failed by %v", failure)
	}
	if written, failure := put(t, client, "/dev/null", nil, "x"); written != "/dev/null" {
		t.Errorf("failed by %v", failure)
	}
	if info, err := os.Stat("/dev/null"); err != nil || info.Mode().IsRegular() {
		t.Errorf("/dev/null is %v, %v", info.Mode(), err)
	}
}

func TestPutThatIsGivenUpKeepsTheFile(t *testing.T) {
	home, client := serve(t)
	os.WriteFile(filepath.Join(home, "file"), []byte("old"), 0o600)
	stream := client.Open(map[string]any{"verb": "put", "path": "file", "mode": nil})
	stream.Write(0, []byte("new"))
	stream.Close()
	stream.Failure()
	expect(t, filepath.Join(home, "file"), "old", 0o600)
}

func TestGet(t *testing.T) {
	home, client := serve(t)
	long := strings.Repeat("long", 1<<20)
	os.WriteFile(filepath.Join(home, "file"), []byte(long), 0o640)
	os.Mkdir(filepath.Join(home, "folder"), 0o755)
	syscall.Mkfifo(filepath.Join(home, "pipe"), 0o600)
	stream := client.Open(map[string]any{"verb": "get", "path": "file"})
	said := stream.Receive()
	if said["mode"] != float64(0o640) || said["size"] != float64(len(long)) || said["path"] != filepath.Join(home, "file") {
		t.Errorf("said %v", said)
	}
	if got, ended := stream.ReadAll(0); got != long || !ended {
		t.Errorf("%d bytes, %v", len(got), ended)
	}
	for path, kind := range map[string]string{"none": "unknown", "folder": "unreadable", "pipe": "unreadable", "file/x": "unreadable"} {
		failure := client.Open(map[string]any{"verb": "get", "path": path}).Failure()
		if failure["error"] != kind || failure["path"] != filepath.Join(home, path) {
			t.Errorf("%s: failed by %v", path, failure)
		}
	}
}
