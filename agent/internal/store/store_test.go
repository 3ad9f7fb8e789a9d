package store

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/wire"
	"remote-runner/agent/internal/wiretest"
)

// content.tar is what tar_content in content.py makes of a directory, and this is what hash_content says of it: names in
// the order of their bytes, some of them no UTF-8, an empty directory, a link that leads out, a long name.
const (
	golden     = "ce0d3838d2cb1d5da4dd680712ce6bbb"
	goldenSize = 24
)

func goldenTar(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/content.tar")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestHashOfContent(t *testing.T) {
	place := directory(t)
	if err := Unpack(bytes.NewReader(goldenTar(t)), place, goldenSize); err != nil {
		t.Fatal(err)
	}
	content, err := ReadContent(filepath.Join(place, top))
	if err != nil || content.Hash != golden || content.Size != goldenSize || content.Files != 6 {
		t.Errorf("%+v, %v", content, err)
	}
	for name, mode := range map[string]fs.FileMode{"": 0o555, "bin": 0o555, "bin/run": 0o555, "a/b": 0o444} {
		if info, err := os.Stat(filepath.Join(place, top, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// directory is a temporary one in which anything may be read-only.
func directory(t testing.TB) string {
	place := t.TempDir()
	t.Cleanup(func() {
		entries, _ := os.ReadDir(place)
		for _, entry := range entries {
			_ = base.Remove(filepath.Join(place, entry.Name()))
		}
	})
	return place
}

type entry struct {
	name string
	kind byte
	text string // of a file; a link's target
	mode int64
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var stream bytes.Buffer
	archive := tar.NewWriter(&stream)
	for _, entry := range entries {
		header := &tar.Header{Name: entry.name, Typeflag: entry.kind, Mode: entry.mode}
		switch entry.kind {
		case tar.TypeReg:
			header.Size = int64(len(entry.text))
		case tar.TypeSymlink, tar.TypeLink:
			header.Linkname = entry.text
		}
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if entry.kind == tar.TypeReg {
			archive.Write([]byte(entry.text))
		}
	}
	archive.Close()
	return stream.Bytes()
}

var hostile = map[string][]entry{
	"up":                  {{"c/", '5', "", 0o755}, {"c/../x", '0', "x", 0o644}},
	"absolute":            {{"/c/x", '0', "x", 0o644}},
	"elsewhere":           {{"d/", '5', "", 0o755}},
	"beside":              {{"c/", '5', "", 0o755}, {"cc", '0', "x", 0o644}},
	"no directory":        {{"c/x", '0', "x", 0o644}},
	"a file for all":      {{"c", '0', "x", 0o644}},
	"nothing":             {},
	"through a link":      {{"c/", '5', "", 0o755}, {"c/l", '2', "/tmp", 0o777}, {"c/l/x", '0', "x", 0o644}},
	"a link for a folder": {{"c/", '5', "", 0o755}, {"c/l", '2', ".", 0o777}, {"c/l/", '5', "", 0o755}},
	"the top a link":      {{"c", '2', "/tmp", 0o777}, {"c/x", '0', "x", 0o644}},
	"twice":               {{"c/", '5', "", 0o755}, {"c/x", '0', "x", 0o644}, {"c/x", '0', "y", 0o644}},
	"onto a link":         {{"c/", '5', "", 0o755}, {"c/x", '2', "../../y", 0o777}, {"c/x", '0', "y", 0o644}},
	"hard link":           {{"c/", '5', "", 0o755}, {"c/x", '1', "/etc/passwd", 0o644}},
	"device":              {{"c/", '5', "", 0o755}, {"c/x", '3', "", 0o644}},
	"pipe":                {{"c/", '5', "", 0o755}, {"c/x", '6', "", 0o644}},
	"too large":           {{"c/", '5', "", 0o755}, {"c/x", '0', strings.Repeat("x", 2000), 0o644}},
	"empty parts":         {{"c/", '5', "", 0o755}, {"c//x", '0', "x", 0o644}},
}

func TestHostileStreams(t *testing.T) {
	for name, entries := range hostile {
		t.Run(name, func(t *testing.T) {
			outside := directory(t)
			place := filepath.Join(outside, "place")
			os.Mkdir(place, 0o700)
			if err := Unpack(bytes.NewReader(tarOf(t, entries...)), place, 1000); !errors.Is(err, errUnsafe) {
				t.Errorf("%v", err)
			}
			onlyBelow(t, outside)
		})
	}
}

// onlyBelow says that there is nothing but place/c in the directory.
func onlyBelow(t testing.TB, outside string) {
	t.Helper()
	for _, place := range append(ls(t, outside), ls(t, filepath.Join(outside, "place"))...) {
		if inside := place[len(outside):]; inside != "/place" && inside != "/place/c" {
			t.Errorf("%s was written", inside)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(goldenTar(f))
	for _, entries := range hostile {
		f.Add(tarOf(f, entries...))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		outside := directory(t)
		place := filepath.Join(outside, "place")
		os.Mkdir(place, 0o700)
		err := Unpack(bytes.NewReader(stream), place, 1<<20)
		onlyBelow(t, outside)
		if err == nil {
			if content, err := ReadContent(filepath.Join(place, top)); err != nil || content.Size > 1<<20 {
				t.Errorf("%+v, %v", content, err)
			}
		}
	})
}

// serve is a service in a directory of its own, and its client.
func serve(t testing.TB, used ...string) (*Service, *wiretest.Client) {
	service := &Service{Base: base.Directory(directory(t)), Used: func() (map[string]bool, error) {
		names := map[string]bool{}
		for _, name := range used {
			names[name] = true
		}
		return names, nil
	}}
	return service, client(t, service)
}

func ls(t testing.TB, directory string) []string {
	t.Helper()
	found, err := names(directory)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func client(t testing.TB, service *Service) *wiretest.Client {
	return wiretest.New(t, wire.Verbs{
		"artifact": service.Artifact, "artifacts": service.Artifacts, "remove-artifacts": service.RemoveArtifacts,
	}.Serve)
}

func ask(client *wiretest.Client, hash string, size, limit int64) *wiretest.Stream {
	return client.Open(map[string]any{"verb": "artifact", "hash": hash, "size": size, "files": 6, "limit": limit})
}

// push brings an artifact, and has what the agent says first and last.
func push(t testing.TB, client *wiretest.Client, hash string, size, limit int64, stream []byte) (first, last map[string]any, failure map[string]any) {
	t.Helper()
	asked := ask(client, hash, size, limit)
	if first = asked.Receive(); first["send"] == true {
		asked.Write(0, stream)
		asked.End(0)
		last = asked.Receive()
	}
	return first, last, asked.Failure()
}

func TestPush(t *testing.T) {
	service, client := serve(t)
	content := service.cache().content(golden)
	first, last, failure := push(t, client, golden, goldenSize, 1<<30, goldenTar(t))
	if first["send"] != true || last["done"] != content || failure != nil {
		t.Fatalf("%v, %v, failed by %v", first, last, failure)
	}
	if first, _, _ := push(t, client, golden, goldenSize, 1<<30, nil); first["have"] != content {
		t.Errorf("%v", first)
	}
	onlyArtifacts(t, service, golden)

	// One that was changed is brought again.
	file := filepath.Join(content, "a", "b")
	os.Chmod(file, 0o644)
	if err := os.WriteFile(file, []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	if first, last, _ := push(t, client, golden, goldenSize, 1<<30, goldenTar(t)); first["send"] != true || last["done"] == nil {
		t.Errorf("%v, %v", first, last)
	}
	// One that only looks changed is read again.
	os.Chtimes(filepath.Join(content, "a", "b"), time.Now(), time.Now())
	if first, _, _ := push(t, client, golden, goldenSize, 1<<30, nil); first["have"] != content {
		t.Errorf("%v", first)
	}
	// As the supervisor before this agent left it.
	seen := filepath.Join(service.Base.Artifact(golden), "seen")
	os.Remove(seen)
	if first, _, _ := push(t, client, golden, goldenSize, 1<<30, nil); first["have"] != content {
		t.Errorf("%v", first)
	}
	// An application may do that.
	os.Remove(seen)
	if err := syscall.Mkfifo(seen, 0o600); err != nil {
		t.Fatal(err)
	}
	if first, _, _ := push(t, client, golden, goldenSize, 1<<30, nil); first["have"] != content {
		t.Errorf("%v", first)
	}
	if info, err := os.Lstat(seen); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
	onlyArtifacts(t, service, golden)
}

// onlyArtifacts says that nothing else is in the cache: nothing half brought, and no lock.
func onlyArtifacts(t testing.TB, service *Service, hashes ...string) {
	t.Helper()
	// The lock goes with the end of the request, a moment after its last word.
	for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(time.Millisecond) {
		if len(ls(t, service.Base.Artifacts())) == len(hashes) {
			break
		}
	}
	found := []string{}
	for _, place := range ls(t, service.Base.Artifacts()) {
		found = append(found, filepath.Base(place))
	}
	if fmt.Sprint(found) != fmt.Sprint(hashes) {
		t.Errorf("%v is there, not %v", found, hashes)
	}
}

func TestWhatCannotBeTaken(t *testing.T) {
	service, client := serve(t)
	other := strings.Repeat("0", 32)
	for name, test := range map[string]struct {
		hash   string
		size   int64
		stream []byte
	}{
		"another hash": {other, goldenSize, goldenTar(t)},
		"cut":          {golden, goldenSize, goldenTar(t)[:2000]},
		"too large":    {golden, goldenSize - 1, goldenTar(t)},
		"no tar":       {golden, goldenSize, []byte("what is this?")},
	} {
		if _, _, failure := push(t, client, test.hash, test.size, 1<<30, test.stream); failure["error"] != "hash" {
			t.Errorf("%s: failed by %v", name, failure)
		}
	}
	if failure := ask(client, "../../etc", 1, 1).Failure(); failure["error"] != "breach" {
		t.Errorf("failed by %v", failure)
	}
	// The client gives up in the middle.
	asked := ask(client, golden, goldenSize, 1<<30)
	asked.Receive()
	asked.Write(0, goldenTar(t)[:3000])
	asked.Close()
	asked.Failure()
	onlyArtifacts(t, service)
}

func TestPushByAFile(t *testing.T) {
	service, client := serve(t)
	place := service.Base.Artifacts()
	file := filepath.Join(place, Aside+"file")
	ask := func(file string) *wiretest.Stream {
		head := map[string]any{"verb": "artifact", "hash": golden, "size": goldenSize, "files": 6, "limit": 1 << 30}
		head["file"] = file
		return client.Open(head)
	}
	for _, other := range []string{"/etc/passwd", filepath.Join(place, "x"), filepath.Join(place, Aside+"x", "..", "..", "x")} {
		if failure := ask(other).Failure(); failure["error"] != "breach" {
			t.Errorf("%s: failed by %v", other, failure)
		}
	}
	lay := func(text []byte) func() { return func() { os.WriteFile(file, text, 0o600) } }
	for name, test := range map[string]struct {
		lay   func()
		lane  []byte
		error any
	}{
		"nothing there":      {func() {}, nil, "hash"},
		"something else":     {lay([]byte("what is this?")), nil, "hash"},
		"cut":                {lay(goldenTar(t)[:2000]), nil, "hash"},
		"a link":             {func() { lay(goldenTar(t))(); os.Rename(file, file+"2"); os.Symlink(file+"2", file) }, nil, "hash"},
		"nobody gives up":    {lay([]byte("half")), goldenTar(t), nil},
		"what was asked for": {lay(goldenTar(t)), nil, nil},
	} {
		asked := ask(file)
		if said := asked.Receive(); said["send"] != true {
			t.Fatalf("%s: %v", name, said)
		}
		test.lay()
		asked.Write(0, test.lane)
		asked.End(0)
		var last map[string]any
		if test.error == nil {
			last = asked.Receive()
		}
		if failure := asked.Failure(); failure["error"] != test.error || test.error == nil && last["done"] == nil {
			t.Errorf("%s: %v, failed by %v", name, last, failure)
		}
		os.Remove(file + "2")
		removeAside(filepath.Join(place, golden))
		onlyArtifacts(t, service)
	}
	// The client goes away.
	asked := ask(file)
	asked.Receive()
	lay(goldenTar(t))()
	asked.Close()
	asked.Failure()
	onlyArtifacts(t, service)
	// Who waits for another one's push is told, for no file will come.
	one, two := ask(file), (*wiretest.Stream)(nil)
	one.Receive()
	two = ask(file)
	if said := two.Receive(); said["waits"] != true {
		t.Errorf("%v", said)
	}
	one.Write(0, goldenTar(t))
	one.End(0)
	one.Receive()
	if said := two.Receive(); said["have"] == nil {
		t.Errorf("%v", said)
	}
	two.Failure()
	onlyArtifacts(t, service, golden)
}

func TestTwoPushesAtOnce(t *testing.T) {
	service, first := serve(t)
	second := client(t, service)
	one := ask(first, golden, goldenSize, 1<<30)
	one.Receive()
	two := ask(second, golden, goldenSize, 1<<30)
	one.Write(0, goldenTar(t))
	one.End(0)
	if said := one.Receive(); said["done"] == nil {
		t.Errorf("said %v", said)
	}
	if said := two.Receive(); said["have"] == nil {
		t.Errorf("said %v", said)
	}
	two.Failure()
	onlyArtifacts(t, service, golden)
}

func TestLongestUnusedGoFirst(t *testing.T) {
	service, client := serve(t, strings.Repeat("2", 32))
	for i := 1; i <= 4; i++ {
		place := service.Base.Artifact(strings.Repeat(fmt.Sprint(i), 32))
		os.MkdirAll(filepath.Join(place, top), 0o755)
		os.WriteFile(filepath.Join(place, top, "file"), make([]byte, 1000), 0o444)
		os.Chmod(filepath.Join(place, top), 0o555)
		os.WriteFile(filepath.Join(place, "kib"), []byte("100\n"), 0o600)
		os.WriteFile(filepath.Join(place, "used"), nil, 0o600)
		used := time.Now().Add(-time.Hour).Add(time.Duration(i) * time.Minute)
		if i == 4 {
			used = time.Now()
		}
		os.Chtimes(filepath.Join(place, "used"), used, used)
	}
	// 1 goes, 2 is used by a run, 3 goes, 4 was just used.
	if _, last, failure := push(t, client, golden, goldenSize, 1000, goldenTar(t)); last["done"] == nil {
		t.Fatalf("failed by %v", failure)
	}
	onlyArtifacts(t, service, strings.Repeat("2", 32), strings.Repeat("4", 32), golden)
}

func TestWordsForTheDisk(t *testing.T) {
	for kind, err := range map[string]error{"room": syscall.ENOSPC, "readonly": syscall.EROFS} {
		var failure *wire.Failure
		if !errors.As(noRoom(&os.PathError{Op: "write", Path: "/there", Err: err}), &failure) || failure.Kind != kind || failure.More["path"] != "/there" {
			t.Errorf("%v: %+v", err, failure)
		}
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holding, most int
	var mutex sync.Mutex
	var all sync.WaitGroup
	for i := 0; i < 20; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			unlock, err := lock(context.Background(), path)
			if err != nil {
				t.Error(err)
				return
			}
			mutex.Lock()
			holding++
			most = max(most, holding)
			mutex.Unlock()
			time.Sleep(time.Millisecond)
			mutex.Lock()
			holding--
			mutex.Unlock()
			unlock()
		}()
	}
	all.Wait()
	if most != 1 {
		t.Errorf("%d had it at once", most)
	}
	// Another process's lock, which flock sees as it sees another open file's.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := lock(late, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	os.Remove(path)
	file.Close()
	unlock, err := lock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestListAndRemove(t *testing.T) {
	used := strings.Repeat("2", 32)
	service, client := serve(t, used)
	push(t, client, golden, goldenSize, 1<<30, goldenTar(t))
	os.MkdirAll(filepath.Join(service.Base.Artifact(used), top), 0o700)
	os.MkdirAll(filepath.Join(service.Base.Artifacts(), ".tmp-cut"), 0o700)
	name := strings.Repeat("a", 32) + "-thing"
	needed, alone := strings.Repeat("b", 32)+"-needed", strings.Repeat("c", 32)+"-alone"
	own := filepath.Join(string(service.Base), "store")
	for _, path := range []string{name, needed, alone} {
		os.MkdirAll(filepath.Join(own, "nix", "store", path, "bin"), 0o755)
		os.Chmod(filepath.Join(own, "nix", "store", path), 0o555)
	}
	os.MkdirAll(filepath.Join(own, "closures"), 0o755)
	os.WriteFile(filepath.Join(own, "closures", name), []byte(name+"\n"+needed+"\n"), 0o644)
	roots := filepath.Join(string(service.Base), "nix", "roots")
	os.MkdirAll(roots, 0o755)
	root := strings.Repeat("d", 32) + "-rooted"
	os.Symlink("/nix/store/"+root, filepath.Join(roots, root))

	stream := client.Open(map[string]any{"verb": "artifacts"})
	found := map[string]map[string]any{}
	for said := stream.Receive(); said != nil; said = stream.Receive() {
		left := said["artifact"].(map[string]any)
		found[left["directory"].(string)[len(service.Base)+1:]] = left
	}
	for _, place := range []string{
		"artifacts/" + golden, "artifacts/" + used, "artifacts/.tmp-cut", "store/closures/" + name, "store/nix/store/" + alone,
		"nix/roots/" + root,
	} {
		left := found[place]
		if left == nil {
			t.Errorf("%s is missing in %v", place, found)
			continue
		}
		if left["name"] != filepath.Base(place) || left["used"] != (left["name"] == used) || left["age_s"].(float64) > 60 {
			t.Errorf("%v", left)
		}
	}
	if len(found) != 6 {
		t.Errorf("%v", found)
	}
	if size := found["artifacts/"+golden]["size"].(float64); size < 4096 {
		t.Errorf("a size of %v", size)
	}

	said := client.Open(map[string]any{"verb": "remove-artifacts", "names": []string{
		golden, used, ".tmp-cut", name, alone, root, "nobody's",
	}}).Receive()
	if len(said["removed"].([]any)) != 5 || len(said["failed"].([]any)) != 0 {
		t.Errorf("%v", said)
	}
	if fmt.Sprint(said["alive"]) != "["+service.Base.Artifact(used)+"]" || fmt.Sprint(said["unknown"]) != "[nobody's]" {
		t.Errorf("%v", said)
	}
	onlyArtifacts(t, service, used)
	if left := append(ls(t, filepath.Join(own, "nix", "store")), ls(t, roots)...); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func TestNothingIsRemovedWhereNotAllCanBeRead(t *testing.T) {
	service, client := serve(t)
	push(t, client, golden, goldenSize, 1<<30, goldenTar(t))
	ask := func() []map[string]any {
		return []map[string]any{
			client.Open(map[string]any{"verb": "artifacts"}).Failure(),
			client.Open(map[string]any{"verb": "remove-artifacts", "names": []string{golden}}).Failure(),
		}
	}
	roots := filepath.Join(string(service.Base), "nix", "roots")
	os.MkdirAll(filepath.Dir(roots), 0o755)
	os.Symlink("roots", roots)
	for _, failure := range ask() {
		if failure["error"] != "unreadable" || failure["path"] != roots {
			t.Errorf("%v", failure)
		}
	}
	os.Remove(roots)
	used := service.Used
	service.Used = func() (map[string]bool, error) { return nil, errors.New("/there cannot be read: why") }
	for _, failure := range ask() {
		if failure["error"] != "unreadable" || failure["text"] != "/there cannot be read: why" {
			t.Errorf("%v", failure)
		}
	}
	// Nor for another one that takes the room.
	cache := service.cache()
	old := time.Now().Add(-time.Hour)
	os.Chtimes(filepath.Join(service.Base.Artifact(golden), "used"), old, old)
	cache.makeRoom(context.Background(), "", 0, 1)
	onlyArtifacts(t, service, golden)
	service.Used = used
	service.cache().makeRoom(context.Background(), "", 0, 1)
	onlyArtifacts(t, service)
}
