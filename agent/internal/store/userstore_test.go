package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"remote-runner/agent/internal/wiretest"
)

var (
	appName  = strings.Repeat("a", 32) + "-app"
	textName = strings.Repeat("b", 32) + "-text"
	linkName = strings.Repeat("c", 32) + "-link"
)

// appTar has all three: a tree, a file and a link.
func appTar(t testing.TB, names ...string) []byte {
	var entries []entry
	for _, name := range names {
		switch name {
		case appName:
			entries = append(entries, entry{name + "/", '5', "", 0o755}, entry{name + "/bin/", '5', "", 0o755},
				entry{name + "/bin/app", '0', "program", 0o755}, entry{name + "/bin/link", '2', "app", 0o777})
		case textName:
			entries = append(entries, entry{name, '0', "text", 0o444})
		case linkName:
			entries = append(entries, entry{name, '2', "/nix/store/" + textName, 0o777})
		}
	}
	return tarOf(t, entries...)
}

// serveClosures is a service whose host shows a user's own store, and its client.
func serveClosures(t testing.TB, used ...string) (*Service, UserStore, *wiretest.Client) {
	service, _ := serve(t, used...)
	service.Prove = func(context.Context, UserStore) (string, error) { return "kept", nil }
	return service, UserStoreIn(service.Base), wiretest.New(t, service.Closure)
}

// pushClosure pushes those paths as one closure, of out.
func pushClosure(t testing.TB, client *wiretest.Client, limit int64, out string, paths ...string) (missing any, last map[string]any, failure map[string]any) {
	t.Helper()
	list := strings.Join(paths, "\n") + "\n"
	stream := client.Open(map[string]any{"verb": "closure", "out": out, "length": len(list), "limit": limit})
	stream.Write(0, []byte(list))
	last = stream.Receive()
	if missing = last["missing"]; missing != nil {
		var sent []string
		for _, number := range missing.([]any) {
			sent = append(sent, paths[int(number.(float64))])
		}
		stream.Write(0, appTar(t, sent...))
		stream.End(0)
		last = stream.Receive()
	}
	return missing, last, stream.Failure()
}

func (s UserStore) has(t testing.TB, want ...string) {
	t.Helper()
	var found []string
	for _, path := range ls(t, s.path("")) {
		found = append(found, filepath.Base(path))
	}
	sort.Strings(want)
	if !reflect.DeepEqual(found, want) {
		t.Errorf("%v is there, not %v", found, want)
	}
	for _, place := range append(ls(t, string(s)), ls(t, s.closure(""))...) {
		if strings.HasPrefix(filepath.Base(place), Aside) {
			t.Errorf("%s is left", place)
		}
	}
}

func TestAListThatCannotBeReadKeepsWhatItMayName(t *testing.T) {
	_, own, client := serveClosures(t)
	if _, last, failure := pushClosure(t, client, 1<<30, textName, textName); last["done"] == nil {
		t.Fatalf("%v, %v", last, failure)
	}
	os.Remove(own.closure(textName))
	if err := os.Mkdir(own.closure(textName), 0o700); err != nil {
		t.Fatal(err)
	}
	own.sweep()
	own.has(t, textName)
	if _, unnamed, err := own.weigh(); err == nil || len(unnamed) > 0 {
		t.Errorf("no closure has %v", unnamed)
	}
	os.Remove(own.closure(textName))
	own.sweep()
	own.has(t)
}

func TestOnlyWhatIsMissingOfAClosureIsTaken(t *testing.T) {
	service, own, client := serveClosures(t)
	missing, last, failure := pushClosure(t, client, 1<<30, textName, textName)
	if len(missing.([]any)) != 1 || last["done"] != string(service.Base) || failure != nil {
		t.Fatalf("%v, %v, %v", missing, last, failure)
	}
	missing, last, failure = pushClosure(t, client, 1<<30, appName, textName, linkName, appName)
	if !reflect.DeepEqual(missing, []any{1.0, 2.0}) || last["done"] != string(service.Base) || failure != nil {
		t.Fatalf("%v, %v, %v", missing, last, failure)
	}
	own.has(t, appName, textName, linkName)
	for name, mode := range map[string]os.FileMode{
		appName: 0o555, appName + "/bin": 0o555, appName + "/bin/app": 0o555, textName: 0o444,
	} {
		info, err := os.Lstat(own.path(name))
		if err != nil || info.Mode().Perm() != mode || !info.IsDir() && info.ModTime().Unix() != 1 {
			t.Errorf("%s: %v, %v, %v", name, info.Mode(), info.ModTime(), err)
		}
	}
	if missing, last, failure = pushClosure(t, client, 1<<30, appName, appName); last["have"] != string(service.Base) {
		t.Errorf("%v, %v, %v", missing, last, failure)
	}
	if missing, last, failure = pushClosure(t, client, 1<<30, linkName, linkName, textName); missing != nil || last["done"] == nil {
		t.Errorf("%v, %v, %v", missing, last, failure)
	}
}

func TestAHostThatShowsNoStoreIsToldOfBeforeAnythingIsSent(t *testing.T) {
	service, own, client := serveClosures(t)
	service.Prove = func(context.Context, UserStore) (string, error) { return "", errors.New("none here") }
	missing, _, failure := pushClosure(t, client, 1<<30, appName, appName)
	if missing != nil || failure["error"] != "namespace" || failure["text"] != "none here" {
		t.Errorf("%v, %v", missing, failure)
	}
	own.has(t)
}

func TestAClosureThatDoesNotComeWholeLeavesNothing(t *testing.T) {
	for name, stream := range map[string][]byte{
		"cut":             appTar(t, appName)[:1500],
		"without a path":  appTar(t, textName),
		"another path":    appTar(t, appName, textName, linkName),
		"up":              tarOf(t, entry{appName + "/../" + textName, '0', "x", 0o644}),
		"through a link":  tarOf(t, entry{appName, '2', "/tmp", 0o777}, entry{appName + "/x", '0', "x", 0o644}),
		"no store path":   tarOf(t, entry{"c/", '5', "", 0o755}),
		"the store again": tarOf(t, entry{"./", '5', "", 0o755}),
	} {
		t.Run(name, func(t *testing.T) {
			_, own, client := serveClosures(t)
			list := appName + "\n" + textName + "\n"
			asked := client.Open(map[string]any{"verb": "closure", "out": appName, "length": len(list), "limit": 1 << 30})
			asked.Write(0, []byte(list))
			if asked.Receive()["missing"] == nil {
				t.Fatal("nothing is missing")
			}
			asked.Write(0, stream)
			asked.End(0)
			if last, failure := asked.Receive(), asked.Failure(); last != nil || failure["error"] != "failed" {
				t.Errorf("%v, %v", last, failure)
			}
			own.has(t)
			if left := ls(t, own.closure("")); len(left) > 0 {
				t.Errorf("%v", left)
			}
		})
	}
}

func TestAProgramsPathIsLookedUpAsTheProgramWould(t *testing.T) {
	service, own, client := serveClosures(t)
	pushClosure(t, client, 1<<30, appName, appName, linkName, textName)
	outside := filepath.Join(string(service.Base), "outside")
	if err := os.Symlink("/nix/store/"+appName, outside); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/nix/store/" + appName + "/bin/app":             own.path(appName + "/bin/app"),
		"/nix/store/" + appName + "/bin/../bin//./link":  own.path(appName + "/bin/app"),
		"/nix/store/" + linkName:                         own.path(textName),
		outside + "/bin/link":                            own.path(appName + "/bin/app"),
		"/nix/../etc":                                    "/etc",
		"/nix/store/" + appName + "/bin/none":            own.path(appName + "/bin/none"),
		"/nix/store/" + appName + "/../../../../usr/bin": "/usr/bin",
	} {
		if found := own.LookUp(path); found != want {
			t.Errorf("%s is %s, not %s", path, found, want)
		}
	}
	if err := os.Symlink(outside+"-2", outside+"-2"); err != nil {
		t.Fatal(err)
	}
	if found := own.LookUp(outside + "-2"); found != outside+"-2" {
		t.Errorf("a circle: %s", found)
	}
}

func TestARunThatBeginsWhileItsClosureIsRemovedKeepsIt(t *testing.T) {
	service, own, client := serveClosures(t)
	pushClosure(t, client, 1<<30, appName, appName, textName)
	looks := 0
	service.Used = func() (map[string]bool, error) { // its record appears behind the first look
		looks++
		return map[string]bool{appName: looks > 1}, nil
	}
	removal := &removing{Removal: NewRemoval(), asked: map[string]bool{appName: true}, seen: map[string]bool{}, used: service.Used}
	if err := removal.from(context.Background(), service.Base); err != nil {
		t.Fatal(err)
	}
	if len(removal.Removed) > 0 || !reflect.DeepEqual(removal.Alive, []string{own.closure(appName)}) {
		t.Errorf("%+v", removal.Removal)
	}
	own.has(t, appName, textName)
}

func TestTheLongestUnusedClosuresMakeRoom(t *testing.T) {
	old, used := strings.Repeat("0", 32)+"-old", strings.Repeat("1", 32)+"-used"
	_, own, client := serveClosures(t, used)
	pushClosure(t, client, 1<<30, textName, textName)
	for _, name := range []string{old, used} {
		pushClosure(t, client, 1<<30, name, linkName, textName)
		long := time.Now().Add(-time.Hour)
		if err := os.Chtimes(own.closure(name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if _, last, failure := pushClosure(t, client, 1, appName, appName); last["done"] == nil {
		t.Fatalf("%v", failure)
	}
	var left []string
	for _, closure := range ls(t, own.closure("")) {
		left = append(left, filepath.Base(closure))
	}
	if want := []string{used, appName, textName}; !reflect.DeepEqual(left, want) {
		t.Errorf("%v, not %v", left, want)
	}
	own.has(t, appName, linkName, textName)
}

func FuzzUnpackPaths(f *testing.F) {
	f.Add(appTar(f, appName, textName, linkName))
	f.Add(tarOf(f, entry{appName, '2', "/tmp", 0o777}, entry{appName + "/x", '0', "x", 0o644}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		outside := directory(t)
		place := filepath.Join(outside, "place")
		os.Mkdir(place, 0o700)
		_ = unpack(bytes.NewReader(stream), place, map[string]bool{appName: true, linkName: true}, 1<<20, storeTime)
		for _, found := range append(ls(t, outside), ls(t, place)...) {
			if base := filepath.Base(found); base != "place" && base != appName && base != linkName {
				t.Errorf("%s was written", found)
			}
		}
	})
}
