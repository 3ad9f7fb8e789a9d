package host

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestWhatNobodyUsesIsSwept(t *testing.T) {
	agents := t.TempDir()
	put := func(name string, age time.Duration) string {
		path := filepath.Join(agents, name)
		if err := os.WriteFile(path, []byte("program"), 0o700); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const long = 25 * time.Hour
	put("0000000000000000-Linux-x86_64", long)
	put(".new-00112233", long)
	put("dead.log", long)
	put("0000000000000001-Linux-x86_64", time.Hour)
	put(".new-00112234", time.Hour)
	put("alive.log", long)
	put("alive.boot", long)
	put("alive.sock", long)
	put("else", long)
	ours := put("0000000000000002-Linux-x86_64", long)
	using, err := use(ours)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(ours); err != nil || time.Since(info.ModTime()) > time.Hour {
		t.Errorf("%v %v", info, err)
	}
	put("0000000000000002-Linux-x86_64", long) // an agent that has run for long
	want := []string{".new-00112234", "0000000000000001-Linux-x86_64", "0000000000000002-Linux-x86_64", "alive.boot",
		"alive.log", "alive.sock", "else"}
	sweep(agents)
	left := func() (names []string) {
		entries, _ := os.ReadDir(agents)
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return names
	}
	if found := left(); !reflect.DeepEqual(found, want) {
		t.Errorf("%q", found)
	}
	using.Close()
	sweep(agents)
	if found := left(); !reflect.DeepEqual(found, append(want[:2:2], want[3:]...)) {
		t.Errorf("%q", found)
	}
}
