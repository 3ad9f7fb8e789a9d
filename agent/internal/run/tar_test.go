package run

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

type sent struct {
	header  *tar.Header
	content []byte
}

func sendAll(t testing.TB, directory string) (map[string]sent, Fetched) {
	t.Helper()
	var stream bytes.Buffer
	report, err := Send(&stream, directory)
	if err != nil {
		t.Fatal(err)
	}
	if stream.Len()%block != 0 {
		t.Errorf("%d bytes are no blocks", stream.Len())
	}
	found := map[string]sent{}
	reader := tar.NewReader(&stream)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		found[header.Name] = sent{header, content}
	}
	return found, report
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestOutputsArriveAsTheyAre(t *testing.T) {
	directory := t.TempDir()
	long := strings.Repeat("directory/", 30) + strings.Repeat("n", 200)
	names := map[string]string{
		"empty": "", "block": strings.Repeat("b", 512), "more": strings.Repeat("m", 100_000), "a\nname\xff": "odd",
		strings.Repeat("h", 100): "just fits", strings.Repeat("h", 101): "does not", long: "deep", "-n": "-", "d/e/f": "f",
	}
	for name, content := range names {
		write(t, filepath.Join(directory, name), content)
	}
	old := time.Unix(-43200, 0)
	late := time.Unix(1<<33+1, 0) // ext4 ends at 2446
	for name, when := range map[string]time.Time{"empty": old, "block": late} {
		if err := os.Chtimes(filepath.Join(directory, name), when, when); err != nil {
			t.Fatal(err)
		}
	}
	target := strings.Repeat("t", 150)
	for _, err := range []error{
		os.Symlink("more", filepath.Join(directory, "link")), os.Symlink(target, filepath.Join(directory, "long link")),
		os.Link(filepath.Join(directory, "more"), filepath.Join(directory, "d/second")),
		os.Chmod(filepath.Join(directory, "d/e/f"), 0o751),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	found, report := sendAll(t, directory)
	hard := 0
	for name, content := range names {
		if one := found[name]; one.header == nil {
			t.Errorf("%.20q is missing", name)
		} else if one.header.Typeflag == tar.TypeLink {
			hard++
		} else if string(one.content) != content {
			t.Errorf("%.20q holds %.20q", name, one.content)
		}
	}
	if found["d/second"].header.Typeflag == tar.TypeLink {
		hard++
	}
	if hard != 1 {
		t.Errorf("%d hard links", hard)
	}
	if when := found["empty"].header.ModTime; !when.Equal(old) {
		t.Errorf("empty is of %v", when)
	}
	if when := found["block"].header.ModTime; !when.Equal(late) {
		t.Errorf("block is of %v", when)
	}
	if found["link"].header.Linkname != "more" || found["long link"].header.Linkname != target {
		t.Error("links lead elsewhere")
	}
	if found["d/e/"].header.Typeflag != tar.TypeDir || found["d/e/f"].header.Mode != 0o751 {
		t.Errorf("%v %v", found["d/e/"].header, found["d/e/f"].header)
	}
	if report.Files != len(names)+1 || !report.Whole || len(report.Changed)+len(report.Unread)+len(report.LeftOut) > 0 {
		t.Errorf("%+v", report)
	}
}

func TestTheSizeIsKnownBeforehand(t *testing.T) {
	directory := t.TempDir()
	write(t, directory+"/a", strings.Repeat("a", 1000))
	write(t, directory+"/below/b", "")
	write(t, directory+"/below/c", strings.Repeat("c", 512))
	if err := os.Symlink("a", directory+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(directory+"/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := Send(&stream, directory); err != nil {
		t.Fatal(err)
	}
	if size := Size(directory); size != int64(stream.Len()) {
		t.Errorf("%d bytes; sent are %d", size, stream.Len())
	}
}

func TestManyFilesAreNotSized(t *testing.T) {
	directory := t.TempDir()
	for i := 0; i <= mostSized; i++ {
		if file, err := syscall.Open(fmt.Sprintf("%s/%d", directory, i), syscall.O_CREAT|syscall.O_WRONLY, 0o600); err == nil {
			syscall.Close(file)
		}
		if i == mostSized-1 && Size(directory) < 0 {
			t.Errorf("%d files are not sized", i+1)
		}
	}
	if size := Size(directory); size != -1 {
		t.Errorf("%d bytes", size)
	}
}

func TestLargeNumbersAreWrittenInBase256(t *testing.T) {
	var stream bytes.Buffer
	if err := header9GiB(&stream); err != nil {
		t.Fatal(err)
	}
	header, err := tar.NewReader(&stream).Next()
	if err != nil || header.Size != 9<<30 {
		t.Errorf("%v %v", header, err)
	}
}

func header9GiB(stream *bytes.Buffer) error {
	t := newArchive(stream, "")
	if err := t.header(header{name: "large", kind: '0', size: 9 << 30}); err != nil {
		return err
	}
	return t.out.flush()
}

func TestASparseFileIsAPlainOne(t *testing.T) {
	directory := t.TempDir()
	write(t, filepath.Join(directory, "holes"), "start")
	if err := os.Truncate(filepath.Join(directory, "holes"), 3<<20); err != nil {
		t.Fatal(err)
	}
	found, _ := sendAll(t, directory)
	if one := found["holes"]; len(one.content) != 3<<20 || !bytes.HasPrefix(one.content, []byte("start\x00")) {
		t.Errorf("%d bytes", len(one.content))
	}
}

func TestWhatIsNoFileIsLeftOut(t *testing.T) {
	directory := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(directory, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(directory, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	found, report := sendAll(t, directory)
	left := map[string]string{}
	for _, each := range report.LeftOut {
		left[each[0]] = each[1]
	}
	if want := map[string]string{"pipe": "is a named pipe", "s": "is a socket"}; !reflect.DeepEqual(left, want) {
		t.Errorf("%v", left)
	}
	if len(found) != 0 || !report.Whole {
		t.Errorf("%v %+v", found, report)
	}
}

func TestWhatCannotBeReadIsTold(t *testing.T) {
	directory := t.TempDir()
	missing := filepath.Join(directory, "missing")
	write(t, filepath.Join(directory, "file"), "x")
	for path, want := range map[string]string{missing: "no such file or directory", directory + "/file": "not a directory"} {
		found, report := sendAll(t, path)
		if report.Whole || len(found) > 0 || !reflect.DeepEqual(report.Unread, [][2]string{{".", want}}) {
			t.Errorf("%v %+v", found, report)
		}
	}
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	write(t, filepath.Join(directory, "closed/inside"), "x")
	for _, name := range []string{"closed", "file"} {
		if err := os.Chmod(filepath.Join(directory, name), 0); err != nil {
			t.Fatal(err)
		}
		defer func(path string) { _ = os.Chmod(path, 0o700) }(filepath.Join(directory, name))
	}
	_, report := sendAll(t, directory)
	if report.Whole || len(report.Unread) != 2 || report.Unread[0][1] != "permission denied" {
		t.Errorf("%+v", report)
	}
}

// TestAFileThatChangesMeanwhile writes to the second of two files while the first one is sent.
func TestAFileThatChangesMeanwhile(t *testing.T) {
	for _, size := range []int64{0, 300_000, 900_000} {
		directory := t.TempDir()
		path := filepath.Join(directory, "changing")
		write(t, path, strings.Repeat("x", 600_000))
		var stream bytes.Buffer
		begun := false
		report, err := Send(writerFunc(func(data []byte) (int, error) {
			if !begun { // its header, and the first part of it
				begun = true
				if err := os.Truncate(path, size); err != nil {
					t.Fatal(err)
				}
			}
			return stream.Write(data)
		}), directory)
		if err != nil {
			t.Fatal(err)
		}
		reader := tar.NewReader(&stream)
		header, err := reader.Next()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil || header.Size != 600_000 || len(content) != 600_000 {
			t.Errorf("%d bytes of %d: %v", len(content), header.Size, err)
		}
		if !reflect.DeepEqual(report.Changed, []string{"changing"}) || !report.Whole {
			t.Errorf("%+v", report)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }

func TestWhenNobodyTakesItItEnds(t *testing.T) {
	directory := t.TempDir()
	write(t, filepath.Join(directory, "f"), strings.Repeat("x", 1<<20))
	gone := errors.New("gone")
	if _, err := Send(writerFunc(func([]byte) (int, error) { return 0, gone }), directory); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

func TestAReportStaysSmall(t *testing.T) {
	directory := t.TempDir()
	for i := 0; i < mostTold+5; i++ {
		if err := syscall.Mkfifo(filepath.Join(directory, fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, report := sendAll(t, directory)
	if last := report.LeftOut[mostTold]; len(report.LeftOut) != mostTold+1 || last[1] != "and 5 more" {
		t.Errorf("%d told, last %v", len(report.LeftOut), last)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add("name", "", byte('0'), int64(5))
	f.Add(strings.Repeat("long/", 60), "", byte('5'), int64(0))
	f.Add("l", strings.Repeat("x", 101), byte('2'), int64(0))
	f.Fuzz(func(t *testing.T, name, link string, kind byte, size int64) {
		if name == "" || len(name) > 4096 || len(link) > 4096 || strings.ContainsRune(name+link, 0) || size < 0 {
			return
		}
		switch kind {
		case '0':
			name = strings.TrimRight(name, "/") + "f"
		case '5':
			name, size = strings.TrimRight(name, "/")+"/", 0
		case '1', '2':
			name, size = strings.TrimRight(name, "/")+"l", 0
			if link == "" {
				return
			}
		default:
			return
		}
		var stream bytes.Buffer
		archive := newArchive(&stream, "")
		wanted := header{name: name, kind: kind, size: size, link: link}
		if kind == '0' || kind == '5' {
			wanted.link = ""
		}
		if err := archive.header(wanted); err != nil {
			t.Fatal(err)
		}
		_ = archive.out.flush()
		found, err := tar.NewReader(&stream).Next()
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if found.Name != name || found.Linkname != wanted.link || found.Typeflag != kind || found.Size != size {
			t.Fatalf("%+v became %+v", wanted, found)
		}
	})
}

func BenchmarkSend5000Files(b *testing.B) {
	directory := b.TempDir()
	for i := 0; i < 5000; i++ {
		write(b, filepath.Join(directory, fmt.Sprint(i%50), fmt.Sprint(i)), strings.Repeat("x", 4096))
	}
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if _, err := Send(io.Discard, directory); err != nil {
			b.Fatal(err)
		}
	}
}

func TestADiskThatHangsHoldsNoExitBack(t *testing.T) {
	hangs := make(chan struct{})
	defer close(hangs)
	if size := within(time.Millisecond, func() int64 { <-hangs; return 1 }); size != -1 {
		t.Errorf("found %d, expected -1", size)
	}
	if size := within(time.Minute, func() int64 { return 1 }); size != 1 {
		t.Errorf("found %d, expected 1", size)
	}
}
