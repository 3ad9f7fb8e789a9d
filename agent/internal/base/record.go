package base

import (
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// Record is what a run's record says, lines of the form key=value:
//
//	id plan run group artifact      what was run, with whatever else the client sends
//	agent agent_start               the process that watches the run, and its start time
//	supervisor supervisor_start     the same for an older version, which had a shell script per run
//	boot                            the machine's boot id: process numbers mean nothing after another boot
//	marker                          the value of REMOTE_RUNNER_INSTANCE
//	application application_start   the application's process, whose number is its group's and its session's
//	exit                            how it ended, as sh reports it; nothing of the run is left then
type Record map[string]string

// Our records are smaller than 4 KiB.
const longestRecord = 64 << 10

// ParseRecord reads a record. It skips malformed lines and a last line that was cut off: half a number is another
// process's.
func ParseRecord(text []byte) Record {
	record := Record{}
	lines := strings.Split(string(text), "\n")
	for _, line := range lines[:len(lines)-1] {
		if key, value, found := strings.Cut(line, "="); found && key != "" {
			record[key] = value
		}
	}
	return record
}

// ReadRecord reads the record of a run. Where there is none, it returns an empty record and the error.
func ReadRecord(run Run) (Record, error) {
	text, err := ReadFile(run.Record(), longestRecord)
	return ParseRecord(text), err
}

// Format writes the record's lines, the id first, and keeps every value on its line.
func (r Record) Format() []byte {
	keys := make([]string, 0, len(r))
	for key := range r {
		if key != "" && !strings.ContainsAny(key, "=\n\x00") {
			keys = append(keys, key)
		}
	}
	sort.Slice(keys, func(i, j int) bool {
		if (keys[i] == "id") != (keys[j] == "id") {
			return keys[i] == "id"
		}
		return keys[i] < keys[j]
	})
	var text strings.Builder
	for _, key := range keys {
		text.WriteString(key + "=" + strings.ReplaceAll(r[key], "\n", " ") + "\n")
	}
	return []byte(text.String())
}

// Append adds lines to the record of a run.
func Append(run Run, more Record) error {
	file, err := openPlain(run.Record(), os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	_, err = file.Write(more.Format())
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

// Watcher returns the process that watches the run; 0 if it is not alive, or from another machine or boot.
func (r Record) Watcher() int {
	if r["boot"] != BootID() {
		return 0
	}
	for _, who := range []string{"agent", "supervisor"} {
		pid, err := strconv.Atoi(r[who])
		if err == nil && pid > 0 && lives(pid) && isSince(pid, r[who+"_start"]) {
			return pid
		}
	}
	return 0
}

// Alive reports whether a process still watches the run and has not seen its end. An agent watches many runs and outlives
// them. Processes that a dead watcher left behind do not count: process.Marked finds them.
func Alive(r Record) bool {
	_, ended := r["exit"]
	return r.Watcher() != 0 && (!ended || r["supervisor"] != "")
}

func isSince(pid int, start string) bool {
	now := StartTime(pid)
	// Where start times are unknown, the number has to do.
	return now == "" || start == "" || now == start
}

// lives reports whether the process exists and is not a zombie.
func lives(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil && err != syscall.EPERM {
		return false
	}
	fields := stat(pid)
	return len(fields) == 0 || fields[0] != "Z" && fields[0] != "X"
}
