package run

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type collected struct {
	*lineGuard
	pieces [][]byte
	piece  []byte
}

func collect(t testing.TB) *collected {
	c := &collected{}
	c.lineGuard = newLineGuard(filepath.Join(t.TempDir(), "remote-runner.stdout.lines"), func(lines []byte) {
		c.pieces = append(c.pieces, bytes.Clone(lines))
	})
	return c
}

func (c *collected) data() string { return string(bytes.Join(c.pieces, nil)) }

// feed feeds from a buffer that is used again, so must not be kept.
func (c *collected) feed(data []byte) {
	c.piece = append(append(c.piece[:0], make([]byte, c.ahead())...), data...)
	c.lineGuard.feed(c.piece)
}

func (c *collected) feedAll(data []byte, chunk int) {
	for len(data) > 0 {
		n := min(chunk, len(data))
		c.feed(data[:n])
		data = data[n:]
	}
}

func TestShortLinesPassByteForByte(t *testing.T) {
	for _, chunk := range []int{1, 7, 4096, 100_000} {
		seeded := rand.New(rand.NewSource(int64(chunk)))
		var data []byte
		for i := 0; i < 40; i++ {
			line := make([]byte, []int{0, 1, 80, 5000}[seeded.Intn(4)])
			seeded.Read(line)
			data = append(append(data, bytes.ReplaceAll(line, []byte("\n"), []byte("\r"))...), '\n')
		}
		data = append(data, "no newline at the end"...)
		c := collect(t)
		c.feedAll(data, chunk)
		for _, piece := range c.pieces {
			if piece[len(piece)-1] != '\n' {
				t.Errorf("a piece ends with %q", piece[len(piece)-1])
			}
		}
		c.close()
		if c.data() != string(data) {
			t.Errorf("chunks of %d: %d bytes came of %d", chunk, len(c.data()), len(data))
		}
		if _, err := os.Stat(c.path); err == nil {
			t.Error("there is a file")
		}
	}
}

func TestOfVeryMuchOnlyTheBeginningIsKept(t *testing.T) {
	c := collect(t)
	c.room = 300_000
	for i := 0; i < 3; i++ {
		c.feedAll(bytes.Repeat([]byte("x"), 200_000), 10_000)
		c.feed([]byte("\n"))
	}
	c.close()
	lines := strings.Split(c.data(), "\n")
	for i, want := range []string{
		"[cut: 200001 bytes, whole as line 1 of", "[cut: 200001 bytes, its first 99999 bytes as line 2 of",
		"[cut: 200001 bytes, the rest could not be kept]",
	} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d ends with %q", i, lines[i][len(lines[i])-100:])
		}
	}
	if info, err := os.Stat(c.path); err != nil || info.Size() != 300_000 {
		t.Errorf("%v %v", info, err)
	}
}

func TestWithoutAFileLinesAreStillCut(t *testing.T) {
	c := collect(t)
	c.path = "/no/such/place"
	c.feed(append(bytes.Repeat([]byte("x"), 70_000), '\n'))
	if len(c.data()) > longestLine || !strings.Contains(c.data(), "the rest could not be kept") {
		t.Errorf("%d bytes", len(c.data()))
	}
}

func TestEveryLineFitsAndTheWholeOneIsKept(t *testing.T) {
	for _, length := range []int{longestLine - 1, longestLine, longestLine + 1, 65536, 1_000_000} {
		for _, chunk := range []int{1000, 61440, 1 << 20} {
			line := strings.Repeat("x", length-1) + "\n"
			c := collect(t)
			c.feedAll([]byte("before\n"+line+"after\n"), chunk)
			c.close()
			lines := strings.SplitAfter(c.data(), "\n")
			if lines[0] != "before\n" || strings.Join(lines[2:], "") != "after\n" {
				t.Fatalf("%d in chunks of %d: %d lines", length, chunk, len(lines))
			}
			if length <= longestLine {
				if lines[1] != line {
					t.Errorf("%d in chunks of %d was changed", length, chunk)
				}
				continue
			}
			note := fmt.Sprintf("[cut: %d bytes, whole as line 1 of remote-runner.stdout.lines]", length)
			kept, _ := os.ReadFile(c.path)
			if len(lines[1]) > longestLine || !strings.Contains(lines[1], note) || string(kept) != line {
				t.Errorf("%d in chunks of %d: %d bytes, %d kept", length, chunk, len(lines[1]), len(kept))
			}
		}
	}
}

// encode is an event's line as Testground's Go SDK writes it.
func encode(t testing.TB, kind string, body map[string]string) []byte {
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(fmt.Sprintf(`{"ts":1690000000000000000,"msg":"","group_id":"single","run_id":"r","event":{"%s":%s}}`+"\n",
		kind, text))
}

type eventLine struct {
	TS    int64 `json:"ts"`
	Event map[string]map[string]any
}

func parseEvent(t testing.TB, line []byte) eventLine {
	t.Helper()
	var found eventLine
	if err := json.Unmarshal(line, &found); err != nil {
		t.Fatalf("%v: %.100q … %q", err, line, line[max(0, len(line)-100):])
	}
	return found
}

func TestALongEventStaysAnEvent(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("a", 200_000), strings.Repeat(`quote " and \ `, 20_000), strings.Repeat("ü€😀", 40_000),
		strings.Repeat("\n\t\x01", 60_000),
	} {
		for kind, body := range map[string]map[string]string{
			"message_event": {"message": text},
			"failure_event": {"group": "single", "error": text},
			"crash_event":   {"error": "short", "group": "single", "stacktrace": text},
		} {
			c := collect(t)
			c.feed(encode(t, kind, body))
			c.close()
			found := parseEvent(t, []byte(c.data()))
			if len(c.data()) > longestLine || found.TS != 1690000000000000000 {
				t.Errorf("%d bytes, ts %d", len(c.data()), found.TS)
			}
			if !strings.Contains(fmt.Sprint(found.Event[kind]), "[cut: ") {
				t.Errorf("%.200v", found.Event)
			}
		}
	}
}

func TestEveryPlaceForTheCutLeavesJSON(t *testing.T) {
	// The cut falls on each position around escapes and sequences of several bytes.
	for shift := 0; shift < 16; shift++ {
		text := strings.Repeat("x", shift) + strings.Repeat(`\\\"€😀\u0001`, 9000)
		line := []byte(`{"ts":1,"event":{"message_event":{"message":"` + text + `"}}}`)
		found := parseEvent(t, shorten(line[:longestLine], int64(len(line)), "whole as line 1 of f"))
		message, _ := found.Event["message_event"]["message"].(string)
		if !strings.HasPrefix(message, strings.Repeat("x", shift)) || strings.Contains(message, "\ufffd") {
			t.Errorf("%d: %.100q", shift, message)
		}
	}
}

func TestAnEventWithItsTimeLastGetsOne(t *testing.T) {
	line := []byte(`{"event":{"message_event":{"message":"` + strings.Repeat("a", 100_000) + `"}},"ts":1}`)
	found := parseEvent(t, shorten(line[:longestLine], int64(len(line)), "whole as line 1 of f"))
	if found.TS <= 1690000000000000000 {
		t.Errorf("%d", found.TS)
	}
}

func TestAnEventOfManyShortValuesIsCutBetweenThem(t *testing.T) {
	var params []string
	for i := 0; i < 10_000; i++ {
		params = append(params, fmt.Sprintf(`"p%d":"value"`, i))
	}
	line := []byte(`{"ts":1,"event":{"start_event":{"runenv":{"plan":"p","params":{` + strings.Join(params, ",") + `}}}}}`)
	found := parseEvent(t, shorten(line[:longestLine], int64(len(line)), "whole as line 1 of f"))
	runenv, _ := found.Event["start_event"]["runenv"].(map[string]any)
	if values, _ := runenv["params"].(map[string]any); values["p100"] != "value" {
		t.Errorf("%.200v", found)
	}
}

func TestWhatIsNoEventIsCutAsText(t *testing.T) {
	for _, line := range []string{
		strings.Repeat("}", 70_000), `{"ts":1]` + strings.Repeat(" ", 70_000), `{"msg":"` + strings.Repeat("a", 70_000) + `"}`,
	} {
		if found := shorten([]byte(line), 9, "whole as line 1 of f"); !bytes.Contains(found, []byte("[cut: 9 bytes")) {
			t.Errorf("%.100q", found)
		}
	}
}

func TestMemoryStaysFlatForALineWithoutEnd(t *testing.T) {
	c := collect(t)
	chunk := bytes.Repeat([]byte("z"), 1<<18)
	c.feed(chunk)
	allocated := testing.AllocsPerRun(100, func() { c.feed(chunk) })
	if allocated > 0 || len(c.long.head) > longestLine {
		t.Errorf("%v allocations, %d bytes held", allocated, len(c.long.head))
	}
	c.close()
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"), 3, 1)
	f.Add([]byte(`{"event":{"message_event":{"message":"\u00e4€`), 4000, 1000)
	f.Fuzz(func(t *testing.T, text []byte, times, chunk int) {
		data := bytes.Repeat(text, times&0xffff%(1+(256<<10)/(len(text)+1)))
		c := collect(t)
		c.feedAll(data, 1+chunk&0xffff)
		c.close()
		given, want := bytes.SplitAfter(data, []byte("\n")), bytes.SplitAfter([]byte(c.data()), []byte("\n"))
		if len(given) != len(want) && !(len(want) == len(given)+1 && len(want[len(given)]) == 0) {
			t.Fatalf("%d lines became %d", len(given), len(want))
		}
		for i, line := range given {
			if len(line) <= longestLine-1 && string(line) != string(want[i]) || len(want[i]) > longestLine {
				t.Fatalf("a line of %d bytes became one of %d", len(line), len(want[i]))
			}
		}
	})
}
