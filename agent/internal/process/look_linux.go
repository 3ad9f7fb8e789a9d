package process

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

func becomeSubreaper() {
	const setChildSubreaper = 36 // PR_SET_CHILD_SUBREAPER, since Linux 3.4
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0)
}

func systemAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// showsProcesses tells whether there is a /proc; in a chroot it may be missing.
func showsProcesses() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

// seen is a process as /proc/PID/stat shows it.
type seen struct {
	pid, parent, group, session int
}

// looks lets those who ask at the same time share one look at all processes: reading 1,000 of them takes 10 ms.
type looks struct {
	turn sync.Mutex // held by who looks
	mu   sync.Mutex
	next *look // has not begun
}

type look struct {
	once  sync.Once
	found []seen
}

// take returns all processes (zombies are none) as they are at some moment after the call.
func (l *looks) take() []seen {
	l.mu.Lock()
	if l.next == nil {
		l.next = &look{}
	}
	mine := l.next
	l.mu.Unlock()
	l.turn.Lock()
	defer l.turn.Unlock()
	mine.once.Do(func() {
		l.mu.Lock()
		l.next = nil
		l.mu.Unlock()
		mine.found = all()
	})
	return mine.found
}

func all() []seen {
	var found []seen
	var buffer [1024]byte
	for _, pid := range pids() {
		text := readProc(pid, "stat", buffer[:])
		// The second field is the name in parentheses, which may hold anything.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) < 4 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		group, _ := strconv.Atoi(fields[2])
		session, _ := strconv.Atoi(fields[3])
		found = append(found, seen{pid, parent, group, session})
	}
	return found
}

func pids() []int {
	directory, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer directory.Close()
	names, _ := directory.Readdirnames(-1)
	found := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			found = append(found, pid)
		}
	}
	return found
}

// readProc reads as much of a file in /proc/PID as fits; os.ReadFile would take three times as long.
func readProc(pid int, name string, buffer []byte) []byte {
	file, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/"+name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(file)
	size := 0
	for size < len(buffer) {
		n, err := syscall.Read(file, buffer[size:])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		size += n
	}
	return buffer[:size]
}

// markerOf is the value of the marker variable in a process's environment, "" where there is none or it may not be read.
func markerOf(pid int) string {
	file, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return ""
	}
	defer file.Close()
	reader := bufio.NewReader(file)
	begins := true // an entry begins here: a long one comes in pieces
	for {
		entry, err := reader.ReadSlice(0)
		if begins && bytes.HasPrefix(entry, []byte(Marker+"=")) {
			return string(bytes.TrimRight(entry[len(Marker)+1:], "\x00"))
		}
		if err != nil && err != bufio.ErrBufferFull {
			return ""
		}
		begins = err == nil
	}
}

// belonging tells for each process below this one to whom it belongs: a run, or nil for one that belongs to none.
// Commands and what they leave are not among them.
func (k *Keeper) belonging() map[int]*Process {
	processes := k.looks.take()
	children := map[int][]seen{}
	sessions := map[int]bool{}
	for _, each := range processes {
		children[each.parent] = append(children[each.parent], each)
		sessions[each.session] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for session := range k.commands {
		if !sessions[session] && k.processes[session] == nil {
			delete(k.commands, session)
		}
	}
	byMarker := map[string]*Process{}
	for _, run := range k.runs {
		byMarker[run.marker] = run
	}
	owners := map[int]*Process{}
	var give func(each seen, owner *Process)
	give = func(each seen, owner *Process) {
		if _, known := owners[each.pid]; known {
			return // numbers that were given anew during the look
		}
		owners[each.pid] = owner
		for _, child := range children[each.pid] {
			give(child, owner)
		}
	}
	for _, each := range children[os.Getpid()] {
		owner := k.runs[each.pid]
		if owner == nil {
			owner = k.runs[each.session]
		}
		if owner == nil {
			owner = k.runs[each.group]
		}
		if owner == nil && (k.commands[each.pid] || k.commands[each.session] || k.commands[each.group]) {
			continue
		}
		if owner == nil {
			owner = byMarker[markerOf(each.pid)]
		}
		give(each, owner)
	}
	return owners
}

// leftOf finds what is left of a run whose process has ended.
func (k *Keeper) leftOf(run *Process) ([]int, bool) {
	k.mu.Lock()
	childless := k.reap()
	k.mu.Unlock()
	if childless {
		// What it left would be below us now; so most often nothing has to be looked at.
		return nil, false
	}
	if !showsProcesses() {
		return groupAlone(run.PID)
	}
	return k.owned(run)
}

// leftOfNone finds what belongs to no run, while there is none.
func (k *Keeper) leftOfNone() ([]int, bool) {
	k.mu.Lock()
	none := len(k.runs) == 0
	k.mu.Unlock()
	if !none || !showsProcesses() {
		return nil, false
	}
	return k.owned(nil)
}

func (k *Keeper) owned(owner *Process) ([]int, bool) {
	var found []int
	for pid, of := range k.belonging() {
		if of == owner {
			found = append(found, pid)
		}
	}
	return found, len(found) > 0
}

// Marked finds the processes whose environment has that marker, wherever they are: for runs whose agent is gone.
func Marked(marker string) []int {
	if marker == "" {
		return nil
	}
	var found []int
	self := os.Getpid()
	for _, pid := range pids() {
		if pid != self && markerOf(pid) == marker {
			found = append(found, pid)
		}
	}
	return found
}

// Members finds the processes of a session or group.
func Members(group int) []int {
	var found []int
	for _, each := range all() {
		if each.group == group || each.session == group {
			found = append(found, each.pid)
		}
	}
	return found
}
