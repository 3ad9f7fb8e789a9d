package process

import (
	"strconv"
	"strings"
)

// Use is the sum of what a run's processes use. Shared memory counts once for each.
type Use struct {
	CPUS         float64 // CPU seconds since they started, with those of waited-for children
	RSSBytes     int64
	Threads      int64
	Descriptors  int64
	ReadBytes    int64 // bytes from and to storage
	WrittenBytes int64
}

func (u Use) plus(other Use) Use {
	return Use{
		u.CPUS + other.CPUS, u.RSSBytes + other.RSSBytes, u.Threads + other.Threads, u.Descriptors + other.Descriptors,
		u.ReadBytes + other.ReadBytes, u.WrittenBytes + other.WrittenBytes,
	}
}

// id returns the run's id: its marker without the secret.
func (p *Process) id() string {
	id, _, _ := strings.Cut(p.marker, ":")
	return id
}

// HasRuns reports whether there are runs.
func (k *Keeper) HasRuns() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.runs) > 0
}

// NextRun returns a channel that is closed when the next run starts.
func (k *Keeper) NextRun() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.nextRun == nil {
		k.nextRun = make(chan struct{})
	}
	return k.nextRun
}

// sayRun wakes whoever waits for a run. The caller holds mu.
func (k *Keeper) sayRun() {
	if k.nextRun != nil {
		close(k.nextRun)
		k.nextRun = nil
	}
}

// PSCommand prints what usesIn reads: group, KiB of memory, CPU time. On FreeBSD everything after "=" is a title, so each
// column has its own -o.
var PSCommand = []string{"ps", "-ax", "-o", "pgid=", "-o", "rss=", "-o", "time="}

// usesIn sums up ps's output by group.
func usesIn(said string) map[int]Use {
	found := map[int]Use{}
	for _, line := range strings.Split(said, "\n") {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		group, err := strconv.Atoi(fields[0])
		kib, wrong := strconv.ParseInt(fields[1], 10, 64)
		if err == nil && wrong == nil {
			found[group] = found[group].plus(Use{CPUS: secondsIn(fields[2]), RSSBytes: kib << 10})
		}
	}
	return found
}

// secondsIn reads [[days-]hours:]minutes:seconds.
func secondsIn(text string) float64 {
	days, rest, found := strings.Cut(text, "-")
	if !found {
		days, rest = "0", text
	}
	total, _ := strconv.ParseFloat(days, 64)
	parts := strings.Split(rest, ":")
	for i, part := range append(make([]string, max(0, 3-len(parts))), parts...) {
		number, _ := strconv.ParseFloat(part, 64)
		total = total*[]float64{24, 60, 60}[i%3] + number
	}
	return total
}
