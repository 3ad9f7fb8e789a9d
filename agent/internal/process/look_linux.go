package process

import (
	"bufio"
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// BecomeSubreaper makes this process the parent of all orphans below it.
func BecomeSubreaper() {
	const setChildSubreaper = 36 // PR_SET_CHILD_SUBREAPER, since Linux 3.4
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0)
}

func systemAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// showsProcesses reports whether there is a /proc; a chroot may lack it.
func showsProcesses() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

// seen is a process as /proc/PID/stat shows it.
type seen struct {
	pid, parent, group, session int
	use                         Use
}

// ticksPerSecond is USER_HZ, the same on every Linux that Go supports.
const ticksPerSecond = 100

var pageSize = int64(os.Getpagesize())

// see returns what /proc shows of a process; false if it has ended (zombies count as ended).
func see(pid int) (seen, bool) {
	var buffer [1024]byte
	text := readProc(pid, "stat", buffer[:])
	// The second field is the name in parentheses, which may contain anything.
	text = text[bytes.LastIndexByte(text, ')')+1:]
	if len(text) < 2 || text[1] == 'Z' || text[1] == 'X' {
		return seen{}, false
	}
	// By number as in proc(5): 4 parent, 5 group, 6 session, 14 to 17 ticks of its own and of children it waited for,
	// 20 threads, 24 resident pages.
	n := statNumbers(text[2:])
	return seen{pid, int(n[0]), int(n[1]), int(n[2]), Use{
		CPUS: float64(n[10]+n[11]+n[12]+n[13]) / ticksPerSecond, RSSBytes: n[20] * pageSize, Threads: n[16],
	}}, true
}

// all returns every process of the host.
func all() []seen {
	var found []seen
	for _, pid := range pids() {
		if each, is := see(pid); is {
			found = append(found, each)
		}
	}
	return found
}

// below returns the descendants of this process without reading the host's other processes, which may be thousands. `but`
// are children to leave out with their descendants. Without the kernel's lists of children (CONFIG_PROC_CHILDREN) it
// returns all processes.
//
// A process that ends meanwhile leaves its children to this one, so this one's list is read until it has nothing new. It
// is exact, since nothing is reaped while it is read.
func (k *Keeper) below(but map[int]*Process) []seen {
	self := os.Getpid()
	looked := map[int]bool{}
	var found []seen
	for {
		k.mu.Lock()
		k.reap()
		next, kept := childrenOf(self, 0, nil)
		next = slices.DeleteFunc(next, func(pid int) bool { return looked[pid] || but[pid] != nil })
		k.mu.Unlock()
		if !kept {
			return all()
		}
		if len(next) == 0 {
			return found
		}
		for len(next) > 0 {
			pid := next[len(next)-1]
			next = next[:len(next)-1]
			if looked[pid] {
				continue
			}
			looked[pid] = true
			if each, is := see(pid); is {
				found = append(found, each)
				next, _ = childrenOf(pid, each.use.Threads, next)
			}
		}
	}
}

var childrenFile = "children" // tests simulate a kernel without them

// childrenOf appends the children of a process, of each of its threads; false if the kernel keeps no list of them.
func childrenOf(pid int, threads int64, found []int) ([]int, bool) {
	if threads == 1 {
		return childrenIn("task/"+strconv.Itoa(pid), pid, found)
	}
	directory, err := os.Open("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return found, false
	}
	defer directory.Close()
	names, _ := directory.Readdirnames(-1)
	kept := false
	for _, name := range names {
		var is bool
		found, is = childrenIn("task/"+name, pid, found)
		kept = kept || is
	}
	return found, kept
}

func childrenIn(thread string, pid int, found []int) ([]int, bool) {
	file, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/"+thread+"/"+childrenFile, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return found, false
	}
	defer syscall.Close(file)
	var buffer [4096]byte
	child := 0
	for {
		size, err := syscall.Read(file, buffer[:])
		if err == syscall.EINTR {
			continue
		}
		if size <= 0 {
			return found, true
		}
		for _, character := range buffer[:size] { // each number is followed by a space
			if character == ' ' {
				found, child = append(found, child), 0
			} else {
				child = child*10 + int(character-'0')
			}
		}
	}
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

// readProc reads what fits of a file in /proc/PID; os.ReadFile would take three times as long.
func readProc(pid int, name string, buffer []byte) []byte {
	file, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/"+name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(file)
	for {
		size, err := syscall.Read(file, buffer) // it is read whole
		if err == syscall.EINTR {
			continue
		}
		return buffer[:max(0, size)]
	}
}

// markerOf returns the marker variable in a process's environment, "" if there is none or it is unreadable.
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

// owned is a descendant of this process, and its run, nil if it belongs to none.
type owned struct {
	seen
	owner *Process
}

// belonging returns this process's descendants, without commands and what they left.
func (k *Keeper) belonging(processes []seen) []owned {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgetCommands(processes)
	at := make(map[int]int, len(processes))
	for i := range processes {
		at[processes[i].pid] = i
	}
	const below = 2
	state := make([]byte, len(processes)) // 0 not looked at, 1 not below this one
	owners := make([]*Process, len(processes))
	self := os.Getpid()
	markers := map[string]*Process{}
	var resolve func(i int) byte
	resolve = func(i int) byte {
		if state[i] != 0 {
			return state[i]
		}
		state[i] = 1 // also in a cycle, from numbers that were reused meanwhile
		each := &processes[i]
		if each.parent == self {
			var isRun bool
			if owners[i], isRun = k.runOf(each, markers); isRun {
				state[i] = below
			}
		} else if parent, seen := at[each.parent]; seen {
			state[i] = resolve(parent)
			owners[i] = owners[parent]
		}
		return state[i]
	}
	var found []owned
	for i := range processes {
		if resolve(i) == below {
			found = append(found, owned{processes[i], owners[i]})
		}
	}
	return found
}

// runOf returns a child's run, nil for none, and whether it is not a command's. The caller holds mu.
func (k *Keeper) runOf(child *seen, markers map[string]*Process) (*Process, bool) {
	for _, number := range [3]int{child.pid, child.session, child.group} {
		if run := k.runs[number]; run != nil {
			return run, true
		}
	}
	if k.commands[child.pid] || k.commands[child.session] || k.commands[child.group] {
		return nil, false
	}
	if len(markers) == 0 {
		for _, run := range k.runs {
			markers[run.marker] = run
		}
	}
	return markers[markerOf(child.pid)], true
}

// forgetCommands forgets commands of which nothing is left. The caller holds mu.
func (k *Keeper) forgetCommands(processes []seen) {
	if len(k.commands) == 0 {
		return
	}
	sessions := map[int]bool{}
	for i := range processes {
		sessions[processes[i].session] = true
	}
	for session := range k.commands {
		if !sessions[session] && k.processes[session] == nil {
			delete(k.commands, session)
		}
	}
}

// lookAgain is after how many looks all of a process is read also where it has not run: its memory may be swapped out.
const lookAgain = 10

// Sampler finds again and again what runs use. Of a process that has one thread and was on no processor since the last look
// only its memory can have changed, so that is all that a process which waits costs: a look at whether it ran. For one
// goroutine.
type Sampler struct {
	keeper *Keeper
	known  map[int]*known
	look   int // its number
	next   []child
	buffer [1024]byte
}

// known is a process as it was when it had run last.
type known struct {
	seen
	children []int
	ran      []byte // what /proc/PID/schedstat said before that: how long and how often it was on a processor
	look     int
}

type child struct{ pid, parent int }

// NewSampler is one that has seen nothing.
func (k *Keeper) NewSampler() *Sampler { return &Sampler{keeper: k, known: map[int]*known{}} }

// Uses stores in `into`, in place of its content, what the processes of each run use; ps is for systems without /proc.
func (s *Sampler) Uses(into map[string]Use, _ func() string) {
	clear(into)
	processes, kept := s.below()
	if !kept {
		processes = all()
	}
	for _, each := range s.keeper.belonging(processes) {
		if each.owner != nil {
			if !kept {
				s.readFiles(each.pid, &each.use)
			}
			id := each.owner.id()
			into[id] = into[id].plus(each.use)
		}
	}
}

// below is as that of the keeper, but reads each list once: what it misses, the next sample has.
func (s *Sampler) below() ([]seen, bool) {
	self := os.Getpid()
	s.keeper.mu.Lock()
	s.keeper.reap()
	children, kept := childrenOf(self, 0, nil)
	s.keeper.mu.Unlock()
	if !kept {
		return nil, false
	}
	s.look++
	s.add(children, self)
	var found []seen
	for len(s.next) > 0 {
		last := len(s.next) - 1
		each := s.next[last]
		s.next = s.next[:last]
		if one := s.at(each); one != nil {
			found = append(found, one.seen)
			s.add(one.children, each.pid)
		}
	}
	for pid, one := range s.known {
		if one.look != s.look {
			delete(s.known, pid)
		}
	}
	return found, true
}

func (s *Sampler) add(children []int, parent int) {
	for _, pid := range children {
		s.next = append(s.next, child{pid, parent})
	}
}

// at looks at a process; nil where there is none any more, or it was looked at.
func (s *Sampler) at(each child) *known {
	one := s.known[each.pid]
	if one != nil && one.look == s.look {
		return nil
	}
	ran := readProc(each.pid, "schedstat", s.buffer[:]) // before all else
	// A kernel that does not count says "0 0 0".
	if one != nil && one.use.Threads == 1 && len(ran) > 0 && ran[0] != '0' && bytes.Equal(ran, one.ran) &&
		(each.pid+s.look)%lookAgain != 0 {
		one.parent, one.look = each.parent, s.look
		return one
	}
	if one == nil {
		one = &known{}
	}
	one.ran = append(one.ran[:0], ran...)
	var is bool
	// Another parent: a list of children that had not been read again, and a number that was given anew.
	if one.seen, is = see(each.pid); !is || one.parent != each.parent {
		return nil
	}
	s.readFiles(each.pid, &one.use)
	one.children, _ = childrenOf(each.pid, one.use.Threads, one.children[:0])
	one.look = s.look
	s.known[each.pid] = one
	return one
}

// readFiles adds what does not stand in the process's stat.
func (s *Sampler) readFiles(pid int, use *Use) {
	use.Descriptors = descriptorsOf(pid)
	io := readProc(pid, "io", s.buffer[:])
	use.ReadBytes, use.WrittenBytes = lineIn(io, "\nread_bytes: "), lineIn(io, "\nwrite_bytes: ")
}

// descriptorsOf counts a process's open files; since Linux 6.2 the size of its fd directory is that number.
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

// lineIn returns the number after that text, 0 if it is missing.
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

// leftOf returns what is left of a run whose process has ended.
func (k *Keeper) leftOf(run *Process) []int {
	k.mu.Lock()
	childless := k.reap()
	k.mu.Unlock()
	if childless {
		// What it left is our child now, so mostly there is nothing to read.
		return nil
	}
	if !showsProcesses() {
		return groupAlone(run.PID)
	}
	return k.owned(run)
}

// leftOfNone returns processes that belong to no run, while there is no run.
func (k *Keeper) leftOfNone() []int {
	k.mu.Lock()
	none := len(k.runs) == 0
	k.mu.Unlock()
	if !none || !showsProcesses() {
		return nil
	}
	return k.owned(nil)
}

// owned returns this process's descendants, without what it started and is still running.
func (k *Keeper) owned(owner *Process) []int {
	var found []int
	for _, each := range k.belonging(k.below(k.processes)) {
		if each.owner == owner {
			found = append(found, each.pid)
		}
	}
	return found
}

// Marked finds all processes of the host whose environment has that marker, for runs whose agent is gone. A marker that
// ends in a colon is a prefix.
func Marked(marker string) []int {
	if marker == "" {
		return nil
	}
	var all []int
	self := os.Getpid()
	for _, pid := range pids() {
		found := markerOf(pid)
		if pid != self && (found == marker || strings.HasSuffix(marker, ":") && strings.HasPrefix(found, marker)) {
			all = append(all, pid)
		}
	}
	return all
}

// Children finds the living children of this process; none where there is no /proc.
func Children() []int {
	if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err == syscall.ECHILD {
		return nil
	}
	var found []int
	for _, each := range all() {
		if each.parent == os.Getpid() {
			found = append(found, each.pid)
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
