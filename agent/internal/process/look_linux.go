package process

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
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
	use                         Use
}

// ticksPerSecond is USER_HZ, which every port of Linux that Go knows has.
const ticksPerSecond = 100

var pageSize = int64(os.Getpagesize())

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

func all() []seen { return shown(pids()) }

func shown(pids []int) []seen {
	found := make([]seen, 0, len(pids))
	var buffer [1024]byte
	for _, pid := range pids {
		text := readProc(pid, "stat", buffer[:])
		// The second field is the name in parentheses, which may hold anything.
		text = text[bytes.LastIndexByte(text, ')')+1:]
		if len(text) < 2 || text[1] == 'Z' || text[1] == 'X' {
			continue
		}
		// By number as in proc(5): 4 parent, 5 group, 6 session, 14 to 17 ticks of its own and of children it waited for,
		// 20 threads, 24 resident pages.
		n := statNumbers(text[2:])
		found = append(found, seen{pid, int(n[0]), int(n[1]), int(n[2]), Use{
			CPUS: float64(n[10]+n[11]+n[12]+n[13]) / ticksPerSecond, RSSBytes: n[20] * pageSize, Threads: n[16],
		}})
	}
	return found
}

// statNumbers are the first fields of a text, from the fourth of /proc/PID/stat to its resident pages.
func statNumbers(text []byte) (found [21]int64) {
	for i, at := 0, 0; i < len(found); i++ {
		for at < len(text) && text[at] == ' ' {
			at++
		}
		negative := at < len(text) && text[at] == '-'
		if negative {
			at++
		}
		for ; at < len(text) && '0' <= text[at] && text[at] <= '9'; at++ {
			found[i] = found[i]*10 + int64(text[at]-'0')
		}
		if negative {
			found[i] = -found[i]
		}
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
	return k.owners(k.looks.take())
}

func (k *Keeper) owners(processes []seen) map[int]*Process {
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

// Uses tells for each run what its processes use, by one look at all processes; ps is for systems without /proc.
func (k *Keeper) Uses(func() string) map[string]Use {
	k.strangers.mu.Lock()
	defer k.strangers.mu.Unlock()
	processes := shown(k.strangers.leaveOut(pids(), lastPID()))
	owners := k.owners(processes)
	found := map[string]Use{}
	self := os.Getpid()
	var buffer [512]byte
	for _, each := range processes {
		if owner := owners[each.pid]; owner != nil {
			use := each.use
			use.Descriptors = descriptorsOf(each.pid)
			io := readProc(each.pid, "io", buffer[:])
			use.ReadBytes, use.WrittenBytes = lineIn(io, "\nread_bytes: "), lineIn(io, "\nwrite_bytes: ")
			found[owner.id()] = found[owner.id()].plus(use)
		} else if each.parent == 0 || each.parent != self && k.strangers.known[each.parent] {
			k.strangers.known[each.pid] = true
		}
	}
	return found
}

// strangers are processes that belong to no run, and never will, as only children of runs do: they are not looked at
// again (of 380 processes on a host, 330 took half of a sample's time). That they are still the same is known by the
// number that the system gave last: those up to it are not given anew before it has begun from 1 again.
type strangers struct {
	mu    sync.Mutex
	known map[int]bool
	last  int
	looks int
}

// Against what the numbers do not tell, such as another /proc than this process's own.
const looksUntilAll = 60

// leaveOut returns those of the processes that may belong to a run.
func (s *strangers) leaveOut(pids []int, last int) []int {
	if s.known == nil || last < s.last || s.looks >= looksUntilAll {
		s.known, s.looks = map[int]bool{}, 0
	}
	s.looks++
	left := pids[:0]
	for _, pid := range pids {
		if pid > s.last || !s.known[pid] {
			left = append(left, pid)
		}
	}
	s.last = last
	return left
}

// lastPID is the number that was given to a process last, 0 where nothing tells.
func lastPID() int {
	text, _ := os.ReadFile("/proc/loadavg")
	fields := bytes.Fields(text)
	if len(fields) < 5 {
		return 0
	}
	last, _ := strconv.Atoi(string(fields[4]))
	return last
}

// descriptorsOf counts the open files of a process, which its directory's size tells since Linux 6.2.
func descriptorsOf(pid int) int64 {
	path := "/proc/" + strconv.Itoa(pid) + "/fd"
	var info syscall.Stat_t
	if syscall.Stat(path, &info) == nil && info.Size > 0 {
		return info.Size
	}
	directory, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer directory.Close()
	names, _ := directory.Readdirnames(-1)
	return int64(len(names))
}

// lineIn is the number behind that text, 0 where it is not there.
func lineIn(text []byte, name string) int64 {
	at := bytes.Index(text, []byte(name))
	if at < 0 {
		return 0
	}
	number := int64(0)
	for _, digit := range text[at+len(name):] {
		if digit < '0' || digit > '9' {
			break
		}
		number = number*10 + int64(digit-'0')
	}
	return number
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
