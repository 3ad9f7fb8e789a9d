package run

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// longestLine is the longest line, with its newline, that is passed on unchanged: Testground stops reading an
	// instance at a line of 64 KiB.
	longestLine = 60 << 10
	// keptBytes limits what is kept of each stream's shortened lines.
	keptBytes = 1 << 30
	// lineRoom is reserved in a shortened line for the note, brackets and a timestamp.
	lineRoom = 512
)

// lineGuard turns bytes into whole lines, none longer than longestLine; memory use does not depend on a line's length.
//
// emit gets one or more whole lines at a time (a stream's last may lack its newline). Shortened lines are written whole to
// a file, which the first one creates.
type lineGuard struct {
	emit     func([]byte)
	path     string // of the file
	room     int64  // for what is kept
	cutLines int

	file *os.File
	held []byte // the beginning of an incomplete line
	long *longLine
}

// longLine is a line being written to the file.
type longLine struct {
	head       []byte
	size, kept int64
}

func newLineGuard(path string, emit func([]byte)) *lineGuard {
	return &lineGuard{emit: emit, path: path, room: keptBytes}
}

// ahead is how many bytes must stay free at the beginning of a piece.
func (g *lineGuard) ahead() int {
	if g == nil {
		return 0
	}
	return len(g.held)
}

// feed takes the stream's next bytes, cut anywhere: those of the piece after its free room.
func (g *lineGuard) feed(piece []byte) {
	data := piece[len(g.held):]
	start := 0
	if g.long != nil {
		start = bytes.IndexByte(data, '\n') + 1
		if start == 0 {
			g.spool(data)
			return
		}
		g.spool(data[:start])
		g.finishLong()
	} else if len(g.held) > 0 {
		if len(piece) < longestLine && bytes.IndexByte(data, '\n') < 0 {
			g.held = append(g.held, data...)
			return
		}
		copy(piece, g.held)
		data, g.held = piece, nil
	}
	ready := start + bytes.LastIndexByte(data[start:], '\n') + 1
	position := start
	// A whole chunk is passed on at once: a newline is looked for only every 60 KiB.
	for ready-position > longestLine {
		if end := bytes.LastIndexByte(data[position:position+longestLine], '\n') + 1; end > 0 {
			position += end
			continue
		}
		g.pass(data[start:position])
		end := position + bytes.IndexByte(data[position:], '\n') + 1
		g.long = &longLine{}
		g.spool(data[position:end])
		g.finishLong()
		start, position = end, end
	}
	g.pass(data[start:ready])
	if len(data)-ready >= longestLine {
		g.long = &longLine{}
		g.spool(data[ready:])
	} else if ready < len(data) {
		g.held = append([]byte(nil), data[ready:]...)
	}
}

// close ends the stream: a last line without a newline is passed on as it is.
func (g *lineGuard) close() {
	if g.long != nil {
		g.finishLong()
	}
	g.pass(g.held)
	g.held = nil
	if g.file != nil {
		g.file.Close()
		g.file = nil
	}
}

func (g *lineGuard) pass(lines []byte) {
	if len(lines) > 0 {
		g.emit(lines)
	}
}

// spool keeps a piece of a long line. If it cannot be written (full disk, missing directory), the shortened line says so.
func (g *lineGuard) spool(data []byte) {
	long := g.long
	if missing := longestLine - len(long.head); missing > 0 {
		long.head = append(long.head, data[:min(missing, len(data))]...)
	}
	complete := long.kept == long.size
	long.size += int64(len(data))
	if !complete || g.room == 0 {
		return
	}
	if g.file == nil {
		flags := os.O_WRONLY | os.O_APPEND | os.O_CREATE | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
		file, err := os.OpenFile(g.path, flags, 0o600)
		if err != nil {
			return
		}
		g.file = file
	}
	n, _ := g.file.Write(data[:min(g.room, int64(len(data)))])
	g.room -= int64(n)
	long.kept += int64(n)
}

func (g *lineGuard) finishLong() {
	g.cutLines++
	long := g.long
	where := fmt.Sprintf("whole as line %d of %s", g.cutLines, filepath.Base(g.path))
	if long.kept == 0 {
		where = "the rest could not be kept"
	} else if long.kept < long.size {
		where = fmt.Sprintf("its first %d bytes as line %d of %s", long.kept, g.cutLines, filepath.Base(g.path))
	}
	g.pass(shorten(long.head, long.size, where))
	g.long = nil
}

// shorten returns a line of at most longestLine bytes for one of size bytes that begins with head. where says where the
// whole line is kept. An event stays an event if its head shows that it is one.
func shorten(head []byte, size int64, where string) []byte {
	note := fmt.Sprintf("… [cut: %d bytes, %s]", size, where)
	head = head[:min(len(head), longestLine-lineRoom)]
	if event := shortenEvent(head, note); event != nil && len(event) <= longestLine { // few brackets are open
		return event
	}
	text := wholeCharacters(bytes.TrimRight(head, "\r\n"))
	return append(append([]byte(nil), text...), " "+note+"\n"...)
}

// shortenEvent returns the beginning of an event's JSON, cut in its last string or after its last whole one; nil if it is
// not an event.
func shortenEvent(head []byte, note string) []byte {
	if !bytes.HasPrefix(bytes.TrimLeft(head, " \t\n\r\v\f"), []byte("{")) {
		return nil
	}
	var open, safeOpen []byte // the brackets to close
	safe := -1                // where the last whole string ends
	before := byte(0)
	key := ""
	topKeys := map[string]bool{}
	for at := 0; at < len(head); at++ {
		token := head[at]
		switch token {
		case '"':
			end, whole := endOfString(head, at)
			isValue := before == ':' || len(open) > 0 && open[len(open)-1] == ']'
			if !whole {
				if isValue && topKeys["event"] {
					return closeEvent(append(wholeCharacters(wholeEscapes(head)), note+`"`...), open, topKeys)
				}
				at = len(head)
				continue
			}
			if isValue {
				safe, safeOpen = end, append([]byte(nil), open...)
			}
			key = string(head[at+1 : end-1])
			at = end - 1
		case '{':
			open = append(open, '}')
		case '[':
			open = append(open, ']')
		case '}', ']':
			if len(open) == 0 || open[len(open)-1] != token {
				return nil // not JSON
			}
			open = open[:len(open)-1]
		case ':':
			if len(open) == 1 {
				topKeys[key] = true
			}
		case ',':
		default:
			continue
		}
		before = token
	}
	if safe < 0 || !topKeys["event"] {
		return nil
	}
	return closeEvent(append([]byte(nil), head[:safe]...), safeOpen, topKeys)
}

// endOfString finds the end of a JSON string that begins at a quote, and reports whether it is complete.
func endOfString(text []byte, at int) (end int, whole bool) {
	for at++; at < len(text); at++ {
		switch text[at] {
		case '\\':
			at++
		case '"':
			return at + 1, true
		}
	}
	return len(text), false
}

func closeEvent(text, open []byte, topKeys map[string]bool) []byte {
	for i := len(open) - 1; i > 0; i-- {
		text = append(text, open[i])
	}
	if !topKeys["ts"] {
		text = strconv.AppendInt(append(text, `,"ts":`...), time.Now().UnixNano(), 10)
	}
	return append(text, "}\n"...)
}

// wholeEscapes returns the text without a truncated escape: a lone backslash, or \u with fewer than four digits.
func wholeEscapes(text []byte) []byte {
	end := len(text)
	at := end - 1
	for at >= 0 && end-at <= 3 && isHex(text[at]) {
		at--
	}
	if at > 0 && text[at] == 'u' {
		at--
	} else {
		at = end - 1
	}
	backslashes := 0
	for at-backslashes >= 0 && text[at-backslashes] == '\\' {
		backslashes++
	}
	if backslashes%2 == 1 {
		return text[:at]
	}
	return text
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// wholeCharacters returns the text without a truncated UTF-8 sequence.
func wholeCharacters(text []byte) []byte {
	for back := 1; back <= min(4, len(text)); back++ {
		switch c := text[len(text)-back]; {
		case c < 0x80:
			return text
		case c >= 0xC0:
			length := 2
			if c >= 0xF0 {
				length = 4
			} else if c >= 0xE0 {
				length = 3
			}
			if length > back {
				return text[:len(text)-back]
			}
			return text
		}
	}
	return text
}
