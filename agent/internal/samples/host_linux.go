package samples

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const ticksPerSecond = 100 // USER_HZ

// looker reads the host's counters; what cannot be read is left out. Not for concurrent use.
type looker struct {
	buffer    []byte
	throttled []string // the cpu.stat of each enclosing control group that counts throttling
}

func newLooker(func(context.Context, ...string) string) *looker {
	l := &looker{buffer: make([]byte, 8<<10)}
	for _, line := range strings.Split(string(l.read("/proc/self/cgroup")), "\n") {
		_, line, _ = strings.Cut(line, ":")
		controllers, group, _ := strings.Cut(line, ":")
		root := "/sys/fs/cgroup"
		if controllers != "" { // of version 1
			if !slices.Contains(strings.Split(controllers, ","), "cpu") {
				continue
			}
			root += "/cpu"
		}
		for ; group != "" && group != "/" && group != "."; group = filepath.Dir(group) {
			path := filepath.Join(root, group, "cpu.stat")
			if _, told := throttled(l.read(path)); told {
				l.throttled = append(l.throttled, path)
			}
		}
	}
	return l
}

// throttled returns for how many seconds a control group was throttled, from its cpu.stat of version 2 or 1.
func throttled(stat []byte) (seconds float64, told bool) {
	if spent := fieldsOf(stat, "throttled_usec "); len(spent) > 0 {
		return spent[0] / 1e6, true
	}
	if spent := fieldsOf(stat, "throttled_time "); len(spent) > 0 {
		return spent[0] / 1e9, true
	}
	return 0, false
}

// read returns a file's text, valid until the next call.
func (l *looker) read(path string) []byte {
	file, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(file)
	size := 0
	for {
		n, err := syscall.Read(file, l.buffer[size:])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return l.buffer[:size]
		}
		if size += n; size == len(l.buffer) {
			if size >= 1<<20 {
				return l.buffer
			}
			l.buffer = append(l.buffer, make([]byte, size)...)
		}
	}
}

// sample returns what every sample has of the host.
func (l *looker) sample(context.Context) map[string]float64 {
	told := map[string]float64{}
	if ticks := fieldsOf(l.read("/proc/stat"), "cpu "); len(ticks) >= 8 {
		// user, nice, system, idle, iowait, irq, softirq, steal; guests are in the first two
		told["cpu_s"] = (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) / ticksPerSecond
		told["steal_s"] = ticks[7] / ticksPerSecond
	}
	if load := fieldsOf(l.read("/proc/loadavg"), ""); len(load) > 0 {
		told["load"] = load[0]
	}
	memory := l.read("/proc/meminfo")
	if available := fieldsOf(memory, "MemAvailable:"); len(available) > 0 {
		told["available_bytes"] = available[0] * 1024
	}
	total, free := fieldsOf(memory, "SwapTotal:"), fieldsOf(memory, "SwapFree:")
	if len(total) > 0 && len(free) > 0 {
		told["swap_used_bytes"] = (total[0] - free[0]) * 1024
	}
	counts := l.read("/proc/vmstat")
	in, out := fieldsOf(counts, "pswpin "), fieldsOf(counts, "pswpout ")
	if len(in) > 0 && len(out) > 0 {
		told["swapped_bytes"] = (in[0] + out[0]) * float64(os.Getpagesize())
	}
	addNetwork(told, l.read("/proc/net/dev"))
	addProtocols(told, l.read("/proc/net/snmp"))
	for _, path := range l.throttled {
		if seconds, is := throttled(l.read(path)); is {
			told["throttled_s"] += seconds
		}
	}
	return told
}

// state returns the same, and what takes longer to read.
func (l *looker) state(ctx context.Context) map[string]float64 {
	told := l.sample(ctx)
	files, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
	for _, file := range files {
		if count := fieldsOf(l.read(file), ""); len(count) > 0 {
			told["thermal_throttles"] += count[0]
		}
	}
	if _, words, found := strings.Cut(string(l.read("/proc/pressure/cpu")), "some avg10="); found {
		word, _, _ := strings.Cut(words, " ")
		if share, err := strconv.ParseFloat(word, 64); err == nil {
			told["pressure"] = share / 100
		}
	}
	return told
}

// addNetwork sums up all interfaces but the loopback.
func addNetwork(told map[string]float64, text []byte) {
	for _, line := range bytes.Split(text, []byte("\n")) {
		name, rest, found := bytes.Cut(line, []byte(":"))
		if !found || string(bytes.TrimSpace(name)) == "lo" {
			continue
		}
		// bytes, packets, errs, drop, fifo, frame, compressed, multicast received, and the same sent
		n := fieldsOf(rest, "")
		if len(n) < 12 {
			continue
		}
		for i, key := range [12]string{
			0: "received_bytes", 1: "received_packets", 2: "errors", 3: "received_drops",
			8: "sent_bytes", 9: "sent_packets", 10: "errors", 11: "sent_drops",
		} {
			if key != "" {
				told[key] += n[i]
			}
		}
	}
}

// addProtocols adds TCP's retransmissions and UDP's dropped datagrams from /proc/net/snmp, which names its columns.
func addProtocols(told map[string]float64, text []byte) {
	var names []string
	for _, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "Tcp:" && words[0] != "Udp:" {
			continue
		}
		if names == nil || names[0] != words[0] {
			names = words
			continue
		}
		for i, word := range words[:min(len(words), len(names))] {
			key := map[string]string{
				"Tcp:OutSegs": "segments", "Tcp:RetransSegs": "retransmits", "Udp:RcvbufErrors": "udp_drops", "Udp:SndbufErrors": "udp_drops",
			}[words[0]+names[i]]
			if number, err := strconv.ParseFloat(word, 64); err == nil && key != "" {
				told[key] += number
			}
		}
	}
}

// fieldsOf returns the numbers in the first line that begins with that name, up to the first word that is not one.
func fieldsOf(text []byte, name string) []float64 {
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		found, is := bytes.CutPrefix(line, []byte(name))
		if !is {
			continue
		}
		var numbers []float64
		for _, word := range bytes.Fields(found) {
			number, err := strconv.ParseFloat(string(word), 64)
			if err != nil {
				break
			}
			numbers = append(numbers, number)
		}
		return numbers
	}
	return nil
}
