package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"sync/atomic"
	"testing"
	"time"
)

// echo sends lane 0 back on lane 1, and every message.
func echo(ctx context.Context, s *Stream, open Message) error {
	copied := make(chan error, 1)
	go func() {
		to := s.Writer(1, false)
		_, err := io.CopyBuffer(struct{ io.Writer }{to}, s.Reader(0), make([]byte, maxData))
		to.Close()
		copied <- err
	}()
	for {
		message, err := s.Receive(ctx)
		if err != nil {
			return err
		}
		if string(message.Head) == `{"end":true}` {
			return <-copied
		}
		if err := s.Send(message.Head, message.Fields...); err != nil {
			return err
		}
	}
}

func TestStreamsAreByteForByteThroughCuts(t *testing.T) {
	var opened atomic.Int32
	c := newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		opened.Add(1)
		return echo(ctx, s, open)
	})
	cut := somewhere(1, 100_000)
	var calm atomic.Bool
	c.cutAt = func() int {
		if calm.Load() {
			return 0
		}
		return cut()
	}
	c.attach()
	random := rand.New(rand.NewSource(2))
	const streams, pieces = 5, 60
	var wanted [streams][]byte
	for i := range wanted {
		c.open(uint32(2*i+1), `{"verb":"echo"}`)
	}
	for piece := 0; piece < pieces; piece++ {
		for i := range wanted {
			stream := uint32(2*i + 1)
			data := make([]byte, random.Intn([2]int{20_000, maxData}[piece%2])) // the memory of large ones is used again
			random.Read(data)
			lane := [2]uint32{stream, 0}
			c.until("credit", func() bool { return laneCredit+c.credit[lane]-len(wanted[i]) >= len(data) })
			wanted[i] = append(wanted[i], data...)
			c.send(frame{kind: kindData, stream: stream, payload: data})
			c.send(frame{kind: kindMessage, stream: stream, payload: []byte(fmt.Sprintf("{\"n\":%d}\x00a\x00\x00b", piece))})
		}
	}
	for i := range wanted {
		c.send(frame{kind: kindEnd, stream: uint32(2*i + 1)})
		c.send(frame{kind: kindMessage, stream: uint32(2*i + 1), payload: []byte(`{"end":true}`)})
	}
	for i := range wanted {
		stream := uint32(2*i + 1)
		c.until("close", func() bool { return len(c.got(kindClose, stream)) == 1 })
		c.mu.Lock()
		if !bytes.Equal(c.data[[2]uint32{stream, 1}], wanted[i]) {
			t.Errorf("stream %d: %d bytes came, not those %d", stream, len(c.data[[2]uint32{stream, 1}]), len(wanted[i]))
		}
		if came := c.got(kindMessage, stream); len(came) != pieces || string(came[7].payload) != "{\"n\":7}\x00a\x00\x00b" {
			t.Errorf("stream %d: %d messages", stream, len(came))
		}
		if closing := c.got(kindClose, stream)[0]; len(closing.payload) != 0 {
			t.Errorf("stream %d: closed with %s", stream, closing.payload)
		}
		if ends := c.got(kindEnd, stream); len(ends) != 1 {
			t.Errorf("stream %d: %d ENDs", stream, len(ends))
		}
		c.mu.Unlock()
		c.send(frame{kind: kindClose, stream: stream})
	}
	calm.Store(true)
	c.mu.Lock()
	cuts := c.cuts
	c.mu.Unlock()
	if opened.Load() != streams || cuts < 5 {
		t.Errorf("%d handlers for %d streams, %d cuts", opened.Load(), streams, cuts)
	}
}

func TestSlowReaderStopsItsOwnStreamOnly(t *testing.T) {
	c := newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		if _, err := s.Writer(1, false).Write(make([]byte, 400<<10)); err != nil {
			return err
		}
		return Fail("taken", "all of %s", "it").With("port", 7)
	})
	c.ignore = true
	c.attach()
	c.open(1, `{}`)
	c.open(3, `{}`)
	for _, stream := range []uint32{1, 3} {
		c.until("credit is used up", func() bool { return len(c.data[[2]uint32{stream, 1}]) == laneCredit })
	}
	c.send(frame{kind: kindCredit, stream: 3, lane: 1, payload: binary.BigEndian.AppendUint32(nil, 1<<20)})
	c.until("the other goes on", func() bool { return len(c.got(kindClose, 3)) == 1 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if text := string(c.got(kindClose, 3)[0].payload); text != `{"error":"taken","port":7,"text":"all of it"}` {
		t.Errorf("closed with %s", text)
	}
	if len(c.got(kindClose, 1)) != 0 {
		t.Error("the slow stream ended")
	}
}

func TestBulkStaysBelowItsLimitAndMessagesPass(t *testing.T) {
	c := newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		if bytes.Contains(open.Head, []byte("bulk")) {
			_, err := s.Writer(3, true).Write(make([]byte, 2<<20))
			return err
		}
		return s.Send(map[string]bool{"small": true})
	})
	c.acks = false
	c.attach()
	c.open(1, `{"verb":"bulk"}`)
	c.until("the limit", func() bool { return len(c.data[[2]uint32{1, 3}]) >= ackBytes })
	c.open(3, `{}`)
	c.until("the small one", func() bool { return len(c.got(kindMessage, 3)) == 1 })
	c.mu.Lock()
	if size := len(c.data[[2]uint32{1, 3}]); size > ackBytes+maxData {
		t.Errorf("%d bytes of bulk were under way", size)
	}
	c.acks = true
	c.write(appendFrame(nil, frame{kind: kindAck, payload: binary.BigEndian.AppendUint64(nil, c.received)}))
	c.mu.Unlock()
	c.until("the bulk", func() bool { return len(c.got(kindClose, 1)) == 1 })
}

func TestSlowLineDelaysNoMessage(t *testing.T) {
	c := newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		if s.ID() == 1 {
			_, err := s.Writer(3, true).Write(make([]byte, 1<<20))
			return err
		}
		return s.Send(map[string]bool{"small": true})
	})
	c.rate = 500_000
	c.attach()
	c.open(1, `{}`)
	var longest time.Duration
	for stream := uint32(3); ; stream += 2 {
		asked := time.Now()
		c.open(stream, `{}`)
		c.until("the small one", func() bool { return len(c.got(kindMessage, stream)) == 1 })
		longest = max(longest, time.Since(asked))
		c.mu.Lock()
		done := len(c.got(kindClose, 1)) == 1
		c.mu.Unlock()
		if done {
			break
		}
	}
	if longest > time.Second {
		t.Errorf("a message took %s", longest)
	}
}

func TestWindowOfTheConnection(t *testing.T) {
	c := newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		for i := 0; i < 20; i++ {
			if err := s.Send(map[string]int{"n": i}, bytes.Repeat([]byte("x"), 1_000_000)); err != nil {
				return err
			}
		}
		return nil
	})
	c.acks = false
	c.attach()
	c.open(1, `{}`)
	c.until("a full window", func() bool { return len(c.got(kindMessage, 1)) == 16 })
	for full := false; !full; time.Sleep(time.Millisecond) {
		c.session.mu.Lock()
		if c.session.keptSize > keptWindow {
			t.Errorf("%d bytes kept", c.session.keptSize)
		}
		full = len(c.session.urgent) == 1
		c.session.mu.Unlock()
	}
	c.mu.Lock()
	if count := len(c.got(kindMessage, 1)); count != 16 {
		t.Errorf("%d messages came", count)
	}
	c.acks = true
	c.write(appendFrame(nil, frame{kind: kindAck, payload: binary.BigEndian.AppendUint64(nil, c.received)}))
	c.mu.Unlock()
	c.until("all", func() bool { return len(c.got(kindMessage, 1)) == 20 && len(c.got(kindClose, 1)) == 1 })
}

func TestCloseOfTheClientCancels(t *testing.T) {
	ended := make(chan string, 2)
	c := newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		_, err := s.Receive(ctx)
		_, readErr := s.Reader(0).Read(make([]byte, 1))
		_, writeErr := s.Writer(1, false).Write([]byte("x"))
		ended <- fmt.Sprint(err, readErr, writeErr)
		return ctx.Err()
	})
	c.attach()
	c.open(1, `{}`)
	c.send(frame{kind: kindClose, stream: 1})
	if got := <-ended; got != "EOF unexpected EOF the stream is closed" {
		t.Error(got)
	}
	c.until("the answer", func() bool { return len(c.got(kindClose, 1)) == 1 })
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	if len(c.session.streams) != 0 {
		t.Error("the stream is still known")
	}
}

func TestStreamOfTheAgent(t *testing.T) {
	var c *client
	c = newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		own, err := c.session.Open(map[string]uint32{"accepted": s.ID()})
		if err != nil {
			return err
		}
		text, err := io.ReadAll(own.Reader(0))
		own.Close(nil)
		if string(text) != "hello" {
			return fmt.Errorf("%q, %v", text, err)
		}
		return nil
	})
	c.attach()
	c.open(1, `{}`)
	c.until("the OPEN", func() bool { return len(c.got(kindOpen, 2)) == 1 })
	c.send(frame{kind: kindData, stream: 2, payload: []byte("hello")})
	c.send(frame{kind: kindEnd, stream: 2})
	c.until("both", func() bool { return len(c.got(kindClose, 1)) == 1 && len(c.got(kindClose, 2)) == 1 })
	if text := c.got(kindClose, 1)[0].payload; len(text) > 0 {
		t.Errorf("%s", text)
	}
}

func TestGrant(t *testing.T) {
	c := newClient(t, func(ctx context.Context, s *Stream, open Message) error {
		s.Grant(0, 1<<20)
		n, err := io.Copy(io.Discard, s.Reader(0))
		if n != 1<<20 {
			return fmt.Errorf("%d bytes, %v", n, err)
		}
		return nil
	})
	c.attach()
	c.open(1, `{}`)
	c.until("more credit", func() bool { return c.credit[[2]uint32{1, 0}] == 1<<20 })
	for i := 0; i < 16; i++ {
		c.send(frame{kind: kindData, stream: 1, payload: make([]byte, maxData)})
	}
	c.send(frame{kind: kindEnd, stream: 1})
	c.until("the end", func() bool { return len(c.got(kindClose, 1)) == 1 })
	if text := c.got(kindClose, 1)[0].payload; len(text) > 0 {
		t.Errorf("%s", text)
	}
}

func wait(t *testing.T, s *Session, reason string, within time.Duration) {
	t.Helper()
	select {
	case <-s.Done():
		if s.Reason() != reason {
			t.Errorf("over by %q, not %q", s.Reason(), reason)
		}
	case <-time.After(within):
		t.Fatalf("not over after %s", within)
	}
}

func (c *client) attached() bool { return c.out != nil }

func TestEndsOfASession(t *testing.T) {
	stuck := func(ctx context.Context, s *Stream, open Message) error {
		<-ctx.Done()
		return ctx.Err()
	}
	begin := func(t *testing.T, alive, tolerate float64) *client {
		c := newClient(t, stuck)
		c.hello.AliveS, c.hello.TolerateS = alive, tolerate
		c.attach()
		c.until("attached", c.attached)
		c.open(1, `{}`)
		c.mu.Lock()
		c.write(appendFrame(nil, frame{kind: kindPing, payload: []byte("12345678")}))
		c.mu.Unlock()
		c.until("PONG", func() bool { return len(c.got(kindPong, 0)) == 1 })
		return c
	}
	t.Run("bye", func(t *testing.T) {
		c := begin(t, 60, 60)
		c.send(frame{kind: kindBye})
		wait(t, c.session, "bye", 5*time.Second)
		c.session.Wait()
	})
	t.Run("lost", func(t *testing.T) {
		c := begin(t, 60, 0.2)
		c.cut()
		wait(t, c.session, "lost", 5*time.Second)
	})
	t.Run("silent", func(t *testing.T) {
		c := begin(t, 0.1, 0.1)
		wait(t, c.session, "lost", 5*time.Second)
		c.until("the transport is let go of", func() bool { return !c.attached() })
	})
	t.Run("back in time", func(t *testing.T) {
		c := begin(t, 60, 30)
		c.cut()
		c.until("cut", func() bool { return c.cuts == 1 })
		c.attach()
		c.until("attached", c.attached)
		c.send(frame{kind: kindBye})
		wait(t, c.session, "bye", 5*time.Second)
	})
	t.Run("never a HELLO", func(t *testing.T) {
		wait(t, NewSession(stuck, Options{FirstHello: time.Millisecond}), "lost", 5*time.Second)
	})
	t.Run("breach again", func(t *testing.T) {
		c := begin(t, 60, 60)
		c.send(frame{kind: kindData, stream: 9, payload: []byte("x")})
		c.until("let go of", func() bool { return !c.attached() })
		c.attach() // sends it again
		wait(t, c.session, "breach", 5*time.Second)
	})
}

// halves is a transport whose two directions end apart.
type halves struct {
	io.Reader
	io.Writer
}

func (h halves) Close() error { return nil }

func TestTheEndOfStdinIsThatOfTheClientWhereTheWayStands(t *testing.T) {
	hello := appendFrame(nil, frame{kind: kindHello, payload: []byte(`{"protocol":1,"epoch":1,"alive_s":60,"tolerate_s":0.4}`)})
	for _, out := range []io.Writer{io.Discard, broken{}} { // broken: the agent has said more than ssh can pass on
		for stands, reason := range map[bool]string{true: "gone", false: "lost"} {
			stands := stands
			s := NewSession(nil, Options{})
			_, err := s.Attach(Transport{
				In: halves{Reader: bytes.NewReader(hello)}, Out: halves{Writer: out}, Epoch: 1,
				Greeting: func(uint64) []byte { return []byte("greeting") },
				Stands:   func() bool { return stands },
			})
			if err != nil {
				t.Fatal(err)
			}
			wait(t, s, reason, 5*time.Second)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestOlderEpochsAreRefused(t *testing.T) {
	c := newClient(t, echo)
	c.epoch = 4
	c.attach()
	c.until("attached", c.attached)
	c.mu.Lock()
	c.write(appendFrame(nil, frame{kind: kindPing, payload: []byte("12345678")}))
	c.mu.Unlock()
	c.until("PONG", func() bool { return len(c.got(kindPong, 0)) == 1 })
	for _, epoch := range []uint64{3, 5} {
		if _, err := c.session.Attach(Transport{Epoch: epoch}); !errors.Is(err, errReplaced) {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
}

func TestPace(t *testing.T) {
	p := pace{limit: ackBytes}
	sent := uint64(10)
	for range [10]int{} {
		p.measure(20*time.Millisecond, sent, sent, true)
		p.measure(20*time.Millisecond, sent, sent, true) // sent before the change: says nothing
		sent++
	}
	if p.limit != largestBulk {
		t.Errorf("limit %d on a fast line", p.limit)
	}
	p.measure(400*time.Millisecond, sent, sent, true)
	if p.limit != largestBulk {
		t.Errorf("limit %d after a delay within the margin", p.limit)
	}
	for range [10]int{} {
		p.measure(600*time.Millisecond, sent, sent, true)
		sent++
	}
	if p.limit != ackBytes {
		t.Errorf("limit %d on a slow line", p.limit)
	}
	for range [2]int{} {
		p.measure(20*time.Millisecond, sent, sent, true)
		sent++
	}
	if p.limit != 3*ackBytes {
		t.Errorf("limit %d once it was too much", p.limit)
	}
}
