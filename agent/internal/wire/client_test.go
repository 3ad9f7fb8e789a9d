package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"sync"
	"testing"
	"time"
)

// client is the other end of a session, as simple as a test can have it. It acknowledges every frame, grants what
// it has received at once, and sends more than it has to after a cut.
type client struct {
	t       *testing.T
	session *Session
	cutAt   func() int // after how many bytes of the agent a transport breaks; 0 for never
	rate    int        // how many bytes a second the transport carries to here; 0 for any

	mu       sync.Mutex
	changed  *sync.Cond
	out      io.Writer // of the present transport
	cut      func()
	epoch    uint64
	sent     uint64
	kept     [][]byte
	received uint64
	cuts     int
	hello    hello
	frames   []frame // all that came, in order; DATA is in data instead
	data     map[[2]uint32][]byte
	credit   map[[2]uint32]int
	ignore   bool // take no DATA into account: no credit
	acks     bool // answer with ACK
	order    []byte
}

func newClient(t *testing.T, handle Handler) *client {
	c := &client{
		t: t, session: NewSession(handle, Options{Key: "key"}), cutAt: func() int { return 0 }, acks: true,
		data: map[[2]uint32][]byte{}, credit: map[[2]uint32]int{},
		hello: hello{Protocol: 1, Session: "key", AliveS: 60, TolerateS: 60},
	}
	c.changed = sync.NewCond(&c.mu)
	t.Cleanup(func() {
		c.session.Close()
		c.session.Wait()
	})
	return c
}

// breaking is a pipe's end that ends after so many bytes, and may be slow.
type breaking struct {
	net.Conn
	left  int
	limit bool
	rate  int
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.limit {
		if b.left <= 0 {
			b.Close()
			return 0, io.ErrClosedPipe
		}
		p = p[:min(len(p), b.left)]
	}
	n, err := b.Conn.Read(p)
	b.left -= n
	if b.rate > 0 {
		time.Sleep(time.Duration(n) * time.Second / time.Duration(b.rate))
	}
	return n, err
}

// attach opens a transport; it is opened again whenever it breaks, until cutAt says 0.
func (c *client) attach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	in, agentOut := net.Pipe()
	agentIn, out := net.Pipe()
	epoch := c.epoch
	_, err := c.session.Attach(Transport{In: agentIn, Out: agentOut, Epoch: epoch, Greeting: func(received uint64) []byte {
		return []byte(fmt.Sprintf("%d\n", received))
	}})
	if err != nil {
		c.t.Errorf("attach: %v", err)
		return
	}
	limit := c.cutAt()
	from := &breaking{Conn: in, left: limit, limit: limit > 0, rate: c.rate}
	go c.read(epoch, bufio.NewReader(from), out, func() { in.Close(); out.Close() })
}

func (c *client) read(epoch uint64, from *bufio.Reader, out io.WriteCloser, cut func()) {
	err := c.follow(epoch, from, out, cut)
	cut()
	c.mu.Lock()
	again := c.epoch == epoch && c.cutAt() > 0
	if c.epoch == epoch {
		c.out = nil
		c.cuts++
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	_ = err
	if again {
		c.attach()
	}
}

func (c *client) follow(epoch uint64, from *bufio.Reader, out io.Writer, cut func()) error {
	line, err := from.ReadString('\n')
	if err != nil {
		return err
	}
	var received uint64
	fmt.Sscan(line, &received)
	c.mu.Lock()
	h := c.hello
	h.Epoch, h.Received = epoch, c.received
	payload, _ := json.Marshal(h)
	again := [][]byte{appendFrame(nil, frame{kind: kindHello, payload: payload})}
	again = append(again, c.kept...) // also what the agent has
	first := c.sent - uint64(len(c.kept))
	if received < first || received > c.sent {
		c.t.Errorf("the agent says it has %d, of %d to %d", received, first, c.sent)
	}
	lines := make(chan []byte, 1<<16)
	for _, raw := range again {
		lines <- raw
	}
	c.out, c.cut = writerTo(lines), cut
	c.changed.Broadcast()
	c.mu.Unlock()
	go func() {
		for raw := range lines {
			if _, err := out.Write(raw); err != nil {
				return
			}
		}
	}()
	header := make([]byte, headerSize)
	for {
		f, err := readFrame(from, header)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.take(f)
		c.changed.Broadcast()
		c.mu.Unlock()
	}
}

type channelWriter chan []byte

func writerTo(c chan []byte) io.Writer { return channelWriter(c) }

func (w channelWriter) Write(p []byte) (int, error) {
	w <- bytes.Clone(p)
	return len(p), nil
}

func (c *client) take(f frame) {
	c.order = append(c.order, f.kind)
	if f.kind == kindAck {
		if n := binary.BigEndian.Uint64(f.payload); n > c.sent-uint64(len(c.kept)) {
			c.kept = c.kept[n-(c.sent-uint64(len(c.kept))):]
		}
		return
	}
	if !numbered(f.kind) {
		c.frames = append(c.frames, f)
		return
	}
	if f.number <= c.received {
		return
	}
	if f.number != c.received+1 {
		c.t.Errorf("frame %d after %d", f.number, c.received)
	}
	c.received = f.number
	lane := [2]uint32{f.stream, uint32(f.lane)}
	switch f.kind {
	case kindData:
		c.data[lane] = append(c.data[lane], f.payload...)
		if !c.ignore {
			c.put(frame{kind: kindCredit, stream: f.stream, lane: f.lane, payload: binary.BigEndian.AppendUint32(nil, uint32(len(f.payload)))})
		}
	case kindCredit:
		c.credit[lane] += int(binary.BigEndian.Uint32(f.payload))
	default:
		c.frames = append(c.frames, f)
	}
	if c.acks {
		c.write(appendFrame(nil, frame{kind: kindAck, payload: binary.BigEndian.AppendUint64(nil, c.received)}))
	}
}

func (c *client) write(raw []byte) {
	if c.out != nil {
		_, _ = c.out.Write(raw)
	}
}

// put sends a numbered frame.
func (c *client) put(f frame) {
	c.sent++
	f.number = c.sent
	raw := appendFrame(nil, f)
	c.kept = append(c.kept, raw)
	c.write(raw)
}

func (c *client) send(f frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(f)
}

func (c *client) open(stream uint32, head string) {
	c.send(frame{kind: kindOpen, stream: stream, payload: []byte(head)})
}

// until waits for something to be true.
func (c *client) until(what string, is func() bool) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := time.AfterFunc(20*time.Second, c.changed.Broadcast)
	defer timer.Stop()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) {
			c.t.Fatalf("not within 20 s: %s", what)
		}
		c.changed.Wait()
	}
}

// got counts the frames of a kind on a stream.
func (c *client) got(kind byte, stream uint32) (found []frame) {
	for _, f := range c.frames {
		if f.kind == kind && f.stream == stream {
			found = append(found, f)
		}
	}
	return found
}

func somewhere(seed int64, most int) func() int {
	random := rand.New(rand.NewSource(seed))
	return func() int { return 1 + random.Intn(most) }
}
