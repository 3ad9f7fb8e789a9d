package run

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
)

// Fetched reports what was sent of a directory.
type Fetched struct {
	Files   int         `json:"files"`
	Size    int64       `json:"size"`
	Changed []string    `json:"changed"` // while they were read; they are sent with their original size
	Unread  [][2]string `json:"unread"`  // and why
	LeftOut [][2]string `json:"left_out"`
	Whole   bool        `json:"whole"` // everything was read
}

const (
	block = 512
	// A report must fit in one message.
	mostTold      = 1000
	mostToldBytes = 256 << 10
	// The size of a piece. A small tree takes less memory: many runs end at the same time.
	gatherBytes = 64 << 10
	// Of more entries nobody is told beforehand how much they are: a look at each takes as long as at a file's end.
	mostSized = 10_000
	// That of a host whose disk hangs is not known; the end of its application is.
	sizeTime = 100 * time.Millisecond
)

// Send writes a directory as one tar stream in GNU's format, which has no limits for names and sizes. Hard links stay
// links, sparse files become plain ones. The error is from writing; what cannot be read is in the report.
func Send(to io.Writer, directory string) (Fetched, error) {
	t := newArchive(to, directory)
	err := t.directory("")
	if err == nil {
		_, err = t.out.Write(make([]byte, 2*block))
	}
	if err == nil {
		err = t.out.flush()
	}
	return t.finish(), err
}

// within returns what look returns, or -1 if that takes longer: a disk that hangs must not hold back that the program ended.
func within(limit time.Duration, look func() int64) int64 {
	found := make(chan int64, 1)
	go func() { found <- look() }()
	select {
	case size := <-found:
		return size
	case <-time.After(limit):
		return -1
	}
}

// Size is how much Send will write, but for names that are long and files that have several; -1 where there are too many.
func Size(directory string) int64 {
	size, left := int64(2*block), mostSized
	waiting := []string{directory}
	for len(waiting) > 0 {
		at := waiting[len(waiting)-1]
		waiting = waiting[:len(waiting)-1]
		file, err := os.OpenFile(at, os.O_RDONLY|syscall.O_DIRECTORY, 0)
		if err != nil {
			continue // Send tells
		}
		for left >= 0 {
			entries, err := file.ReadDir(256)
			left -= len(entries)
			for _, each := range entries {
				switch each.Type() {
				case fs.ModeDir:
					waiting = append(waiting, filepath.Join(at, each.Name()))
					size += block
				case fs.ModeSymlink:
					size += block
				case 0:
					if info, err := each.Info(); err == nil {
						size += block + (info.Size()+block-1)&^(block-1)
					}
				}
			}
			if err != nil {
				break
			}
		}
		file.Close()
		if left < 0 {
			return -1
		}
	}
	return size
}

type archive struct {
	out       *gather
	root      string
	links     map[[2]uint64]string // device and inode of a file with several names: the first name
	report    Fetched
	told      int
	toldBytes int
	untold    int
}

func newArchive(to io.Writer, directory string) *archive {
	return &archive{
		out:   &gather{to: to},
		root:  directory,
		links: map[[2]uint64]string{},
		// Empty lists, not null in JSON.
		report: Fetched{Changed: []string{}, Unread: [][2]string{}, LeftOut: [][2]string{}, Whole: true},
	}
}

func (t *archive) finish() Fetched {
	if t.untold > 0 {
		rest := [2]string{"…", fmt.Sprintf("and %d more", t.untold)}
		if t.report.Whole {
			t.report.LeftOut = append(t.report.LeftOut, rest)
		} else {
			t.report.Unread = append(t.report.Unread, rest)
		}
	}
	return t.report
}

// mayTell reports whether the report has room for one more.
func (t *archive) mayTell(words string) bool {
	if t.told++; t.told > mostTold || t.toldBytes+len(words) > mostToldBytes {
		t.untold++
		return false
	}
	t.toldBytes += len(words)
	return true
}

func (t *archive) unread(name string, err error) {
	t.report.Whole = false
	if t.mayTell(name) {
		t.report.Unread = append(t.report.Unread, [2]string{name, base.Why(err)})
	}
}

func (t *archive) leftOut(name, why string) {
	if t.mayTell(name) {
		t.report.LeftOut = append(t.report.LeftOut, [2]string{name, why})
	}
}

// directory sends what is in a directory, "" for the root; it keeps only the names of subdirectories meanwhile.
func (t *archive) directory(name string) error {
	shown := name
	flags := os.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NOFOLLOW
	if name == "" {
		shown = "."
		flags &^= syscall.O_NOFOLLOW
	}
	file, err := os.OpenFile(filepath.Join(t.root, name), flags, 0)
	if err != nil {
		t.unread(shown, err)
		return nil
	}
	defer file.Close()
	var directories []string
	for {
		names, err := file.Readdirnames(256)
		for _, each := range names {
			isDirectory, failed := t.entry(name + each)
			if failed != nil {
				return failed
			}
			if isDirectory {
				directories = append(directories, name+each+"/")
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.unread(shown, err)
			break
		}
	}
	file.Close()
	for _, each := range directories {
		if err := t.directory(each); err != nil {
			return err
		}
	}
	return nil
}

// entry sends one entry; for a directory, its header only.
func (t *archive) entry(name string) (isDirectory bool, failed error) {
	path := filepath.Join(t.root, name)
	info, err := os.Lstat(path)
	if err != nil {
		t.unread(name, err)
		return false, nil
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		return true, t.header(header{name: name + "/", kind: '5', info: info})
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			t.unread(name, err)
			return false, nil
		}
		return false, t.header(header{name: name, kind: '2', link: target, info: info})
	case 0:
		return false, t.file(name, path, info)
	case fs.ModeNamedPipe:
		t.leftOut(name, "is a named pipe")
	case fs.ModeSocket:
		t.leftOut(name, "is a socket")
	default:
		t.leftOut(name, "is a device")
	}
	return false, nil
}

func (t *archive) file(name, path string, info fs.FileInfo) error {
	var identity [2]uint64
	if system, ok := info.Sys().(*syscall.Stat_t); ok && system.Nlink > 1 {
		identity = [2]uint64{uint64(system.Dev), uint64(system.Ino)}
		if first, seen := t.links[identity]; seen {
			t.report.Files++
			return t.header(header{name: name, kind: '1', link: first, info: info})
		}
	}
	// Non-blocking: it may have been replaced by a pipe meanwhile.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.unread(name, err)
		return nil
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil || !info.Mode().IsRegular() {
		t.unread(name, errors.New("was replaced while it was read"))
		return nil
	}
	size := info.Size()
	if err := t.header(header{name: name, kind: '0', size: size, info: info}); err != nil {
		return err
	}
	content := &padded{file: file, left: size}
	if err := t.out.take(content); err != nil {
		return err
	}
	if err := t.pad(size); err != nil {
		return err
	}
	if identity != [2]uint64{} {
		t.links[identity] = name
	}
	t.report.Files++
	t.report.Size += size
	if content.failed != nil {
		t.unread(name, content.failed)
	} else if now, err := file.Stat(); content.short || err == nil && (now.Size() != size || now.ModTime() != info.ModTime()) {
		if t.mayTell(name) {
			t.report.Changed = append(t.report.Changed, name)
		}
	}
	return nil
}

// padded reads exactly that many bytes of a file: zeros where it became shorter or is unreadable.
type padded struct {
	file   io.Reader
	left   int64
	short  bool
	failed error
}

func (p *padded) read(into []byte) int {
	n := 0
	if !p.short {
		var err error
		if n, err = p.file.Read(into); n == 0 && err != nil {
			p.short = true
			if err != io.EOF {
				p.failed = err
			}
		}
	}
	if p.short {
		n = len(into)
		for i := range into {
			into[i] = 0
		}
	}
	p.left -= int64(n)
	return n
}

// gather joins small pieces.
type gather struct {
	to   io.Writer
	held []byte
}

func (g *gather) flush() error {
	_, err := g.to.Write(g.held)
	g.held = g.held[:0]
	return err
}

func (g *gather) Write(piece []byte) (int, error) {
	g.held = append(g.held, piece...)
	if len(g.held) < gatherBytes {
		return len(piece), nil
	}
	return len(piece), g.flush()
}

// take reads a file to its end.
func (g *gather) take(file *padded) error {
	for file.left > 0 {
		room := min(int64(gatherBytes-len(g.held)), file.left)
		start := len(g.held)
		if missing := start + int(room) - cap(g.held); missing > 0 {
			g.held = append(g.held, make([]byte, room)...)
		}
		n := file.read(g.held[start : start+int(room)])
		if g.held = g.held[:start+n]; len(g.held) == gatherBytes {
			if err := g.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

type header struct {
	name, link string
	kind       byte
	size       int64
	info       fs.FileInfo // nil: our own buffer
}

// header writes a header, after extra ones for names that do not fit into it.
func (t *archive) header(h header) error {
	const longest = 100
	for _, long := range []struct {
		text string
		kind byte
	}{{h.link, 'K'}, {h.name, 'L'}} {
		if len(long.text) <= longest {
			continue
		}
		text := long.text + "\x00"
		if err := t.header(header{name: "././@LongLink", kind: long.kind, size: int64(len(text))}); err != nil {
			return err
		}
		if _, err := io.WriteString(t.out, text); err != nil {
			return err
		}
		if err := t.pad(int64(len(text))); err != nil {
			return err
		}
	}
	var b [block]byte
	copy(b[:longest], h.name)
	copy(b[157:257], h.link)
	var mode, seconds int64
	if h.info != nil {
		mode, seconds = int64(h.info.Mode().Perm()), h.info.ModTime().Unix()
	}
	number(b[100:108], mode)
	number(b[108:116], 0) // no owner: files will belong to the reader
	number(b[116:124], 0)
	number(b[124:136], h.size)
	number(b[136:148], seconds)
	b[156] = h.kind
	copy(b[257:265], "ustar  \x00")
	copy(b[148:156], strings.Repeat(" ", 8))
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	_, err := t.out.Write(b[:])
	return err
}

// number writes octal digits, or, if they do not fit, GNU's base 256: two's complement with the highest bit set.
func number(field []byte, value int64) {
	digits := len(field) - 1
	if value >= 0 && value < 1<<(3*digits) {
		for at := digits - 1; at >= 0; at-- {
			field[at] = '0' + byte(value&7)
			value >>= 3
		}
		return
	}
	for at := len(field) - 1; at >= 0; at-- {
		field[at] = byte(value)
		value >>= 8
	}
	field[0] |= 0x80
}

// pad fills up the last block of something of that size.
func (t *archive) pad(size int64) error {
	var zeros [block]byte
	_, err := t.out.Write(zeros[:-size&(block-1)])
	return err
}
