package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log"
	"sync"
	"time"
)

const (
	settleTime  = 20 * time.Millisecond  // how far apart a transport that breaks may close its streams
	probeTime   = 250 * time.Millisecond // how long the end of a session's program may take to be noticed, after stdin ended
	ackTime     = time.Second
	soonTime    = 2 * time.Millisecond // after ackBytes: each ACK wakes three programs on its way
	againTime   = time.Second          // for what is still unread after this process was stopped
	soonMargin  = 100 * time.Millisecond
	lateMargin  = 500 * time.Millisecond
	laneWaiting = 64 << 10 // a lane with more than this under way counts as bulk
	keptCost    = 64       // the overhead of a kept frame
)

// ErrOver is returned by every operation on a session that is over.
var ErrOver = errors.New("the session is over")

// errReplaced ends an attachment that a later one replaced, or that came too late.
var errReplaced = errors.New("another attachment has its place")

// Handler serves one stream of the client. Its error becomes the CLOSE: a *Failure as it is, others as
// kind "failed"; nil is a plain CLOSE. The context ends with the stream and with the session.
type Handler func(ctx context.Context, s *Stream, open Message) error

// Verbs are handlers by the verb in the head of an OPEN.
type Verbs map[string]Handler

// Serve is the Handler that calls them.
func (v Verbs) Serve(ctx context.Context, s *Stream, open Message) error {
	var head struct{ Verb string }
	if err := open.Decode(&head); err != nil {
		return err
	}
	serve := v[head.Verb]
	if serve == nil {
		return Fail("breach", "there is no verb %q", head.Verb)
	}
	return serve(ctx, s, open)
}

// Options configure a session.
type Options struct {
	Key        string        // what HELLO must name; "" accepts anything
	FirstHello time.Duration // how long to wait for the first HELLO; a minute with 0
}

// Session is what outlives its transports: frame numbers, frames that are not acknowledged yet, and streams.
//
// A frame is numbered and kept as soon as there is room for it, with or without a transport; each transport has a
// goroutine that writes the kept frames in order. So a sender waits for room only, never for a transport, and admission
// decides the order: bulk is admitted only while little of it is in flight. Nothing blocks while mu is held.
type Session struct {
	handle   Handler
	key      string
	ctx      context.Context
	cancel   context.CancelFunc
	handlers sync.WaitGroup

	mu       sync.Mutex // guards all below, and the fields of streams, lanes and attachments
	sent     uint64
	kept     []keptFrame // frames with the numbers sent-len(kept)+1 … sent
	keptSize int
	bulkSize int
	pace     pace
	urgent   []*entry // frames that wait for room, each in order
	bulky    []*entry

	received uint64
	unacked  int // bytes since the last ACK
	ackArmed bool
	ackDue   bool
	ackTimer *time.Timer

	streams    map[uint32]*Stream
	lastTheirs uint32
	lastOurs   uint32

	current   *Attachment
	epoch     uint64 // of the last HELLO
	alive     time.Duration
	tolerate  time.Duration
	lostTimer *time.Timer // runs while no transport is attached
	breached  bool
	breachAt  uint64
	over      bool
	reason    string
}

type keptFrame struct {
	raw  []byte
	size int
	bulk bool
	out  *outLane
	at   time.Time
}

// entry is a frame that waits for room. Until it is admitted, its payload may be the sender's own memory.
type entry struct {
	frame    frame
	stream   *Stream
	out      *outLane
	bulk     bool
	admitted chan struct{}
	dropped  bool
}

// NewSession makes a session without a transport.
func NewSession(handle Handler, options Options) *Session {
	s := &Session{handle: handle, key: options.Key, streams: map[uint32]*Stream{}, pace: pace{limit: ackBytes}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.tolerate = options.FirstHello
	if s.tolerate == 0 {
		s.tolerate = time.Minute
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armLost()
	return s
}

// Done is closed when the client is gone for good.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Reason returns why the session is over: "bye", "gone" (the client ended), "lost" (it did not come back) or
// "breach" (it violated the protocol).
func (s *Session) Reason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// Wait waits for the handlers of all streams. It is for after Done.
func (s *Session) Wait() { s.handlers.Wait() }

// Close closes the transport.
func (s *Session) Close() {
	s.mu.Lock()
	s.finish("closed")
	a := s.current
	s.current = nil
	s.mu.Unlock()
	if a != nil {
		a.stop()
	}
}

func (s *Session) finish(reason string) {
	if s.over {
		return
	}
	s.over, s.reason = true, reason
	s.urgent, s.bulky = nil, nil
	for _, timer := range []*time.Timer{s.lostTimer, s.ackTimer} {
		if timer != nil {
			timer.Stop()
		}
	}
	s.cancel()
}

// Sending

// enqueue sends a frame as soon as there is room. Then the result's channel is closed.
func (s *Session) enqueue(e *entry) *entry {
	e.admitted = make(chan struct{})
	if s.over {
		return e
	}
	if e.bulk {
		s.bulky = append(s.bulky, e)
	} else {
		s.urgent = append(s.urgent, e)
	}
	s.admit()
	return e
}

// admit admits waiting frames as far as there is room.
func (s *Session) admit() {
	for len(s.urgent) > 0 && s.fits(s.urgent[0]) {
		s.put(s.urgent[0])
		s.urgent = s.urgent[1:]
	}
	for len(s.bulky) > 0 && s.bulkSize < s.pace.limit && s.fits(s.bulky[0]) {
		s.put(s.bulky[0])
		s.bulky = s.bulky[1:]
	}
}

func (s *Session) fits(e *entry) bool {
	return s.keptSize+len(e.frame.payload)+keptCost <= keptWindow
}

func (s *Session) put(e *entry) {
	if e.dropped || (e.stream.ours && e.frame.kind == kindData) {
		return // its stream was closed while it waited
	}
	s.sent++
	e.frame.number = s.sent
	size := len(e.frame.payload)
	raw := appendFrame(newFrame(size), e.frame)
	s.kept = append(s.kept, keptFrame{raw: raw, size: size, bulk: e.bulk, out: e.out, at: time.Now()})
	s.keptSize += size + keptCost
	if e.bulk {
		s.bulkSize += size
	}
	if e.out != nil {
		e.out.unacked += size
	}
	close(e.admitted)
	s.kick()
}

// large recycles the memory of large frames: a busy stream makes no garbage in either direction.
var large = sync.Pool{New: func() any { return new([headerSize + maxData]byte) }}

func newFrame(size int) []byte {
	if size <= maxData/2 || size > maxData {
		return make([]byte, 0, headerSize+size)
	}
	return large.Get().(*[headerSize + maxData]byte)[:0]
}

func freeFrame(raw []byte) {
	if cap(raw) == headerSize+maxData {
		large.Put((*[headerSize + maxData]byte)(raw[:headerSize+maxData]))
	}
}

// kick wakes the transport's writer.
func (s *Session) kick() {
	if s.current != nil {
		poke(s.current.kick)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// acknowledged forgets the frames up to a number.
func (s *Session) acknowledged(number uint64) error {
	if number > s.sent {
		return breach("frame %d of %d is acknowledged", number, s.sent)
	}
	before := s.sent - uint64(len(s.kept))
	if number <= before {
		return nil
	}
	count, size := int(number-before), 0
	delay := time.Since(s.kept[count-1].at)
	for i := range s.kept[:count] {
		k := &s.kept[i]
		size += k.size
		s.keptSize -= k.size + keptCost
		if k.bulk {
			s.bulkSize -= k.size
		}
		if k.out != nil {
			k.out.unacked -= k.size
		}
		if a := s.current; a != nil && a.alone < before+uint64(i)+1 && before+uint64(i)+1 <= a.written {
			freeFrame(k.raw)
		}
		*k = keptFrame{}
	}
	s.kept = s.kept[count:]
	if len(s.kept) == 0 {
		s.kept = nil
	}
	// A smaller acknowledgement was delayed by the receiver's timer, so it says nothing about the line.
	if size >= ackBytes {
		s.pace.measure(delay, number, s.sent, len(s.bulky) > 0)
	}
	s.admit()
	return nil
}

// pace decides how much bulk may be in flight, from the delay of acknowledgements.
type pace struct {
	limit    int
	shortest time.Duration
	mark     uint64 // frames before this number were sent under another limit
	found    bool   // the limit was once too much
}

func (p *pace) measure(delay time.Duration, number, sent uint64, limited bool) {
	if p.shortest == 0 || delay < p.shortest {
		p.shortest = delay
	}
	limit := p.limit
	switch {
	case number < p.mark:
	case delay > p.shortest+lateMargin:
		p.found = true
		limit = max(limit/2, ackBytes)
	case delay > p.shortest+soonMargin || !limited:
	case p.found:
		limit = min(limit+ackBytes, largestBulk)
	default:
		limit = min(limit*2, largestBulk)
	}
	if limit != p.limit {
		p.limit, p.mark = limit, sent+1
	}
}

// Receiving

type hello struct {
	Protocol  int     `json:"protocol"`
	Session   string  `json:"session"`
	Epoch     uint64  `json:"epoch"`
	Received  uint64  `json:"received"`
	AliveS    float64 `json:"alive_s"`
	TolerateS float64 `json:"tolerate_s"`
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// take handles a frame from an attachment.
func (s *Session) take(a *Attachment, f frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case a != s.current:
		return errReplaced
	case s.over:
		return nil
	case a.attached == (f.kind == kindHello):
		return breach("a frame of kind %c where HELLO belongs or not", f.kind)
	}
	switch f.kind {
	case kindHello:
		return s.greet(a, f.payload)
	case kindAck:
		return s.acknowledged(binary.BigEndian.Uint64(f.payload))
	case kindPing:
		if len(a.control) < maxData { // otherwise the client sends and does not read
			a.control = appendFrame(a.control, frame{kind: kindPong, payload: f.payload})
			poke(a.kick)
		}
		return nil
	case kindPong:
		return nil
	}
	if f.number <= s.received {
		return nil
	}
	if f.number != s.received+1 {
		return breach("frame %d follows frame %d", f.number, s.received)
	}
	if err := s.accept(f); err != nil {
		return err
	}
	s.received++
	before := s.unacked
	s.unacked += len(f.payload)
	switch {
	case s.unacked >= mostUnacked:
		s.acknowledge()
	case before < ackBytes && s.unacked >= ackBytes:
		s.acknowledgeAfter(soonTime)
	case !s.ackArmed:
		s.acknowledgeAfter(ackTime)
	}
	return nil
}

func (s *Session) acknowledgeAfter(wait time.Duration) {
	s.ackArmed = true
	if s.ackTimer != nil {
		s.ackTimer.Reset(wait)
		return
	}
	s.ackTimer = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ackArmed {
			s.acknowledge()
		}
	})
}

func (s *Session) acknowledge() {
	s.ackDue = true
	s.kick()
}

// greet handles the client's HELLO.
func (s *Session) greet(a *Attachment, payload []byte) error {
	var h hello
	if err := json.Unmarshal(payload, &h); err != nil {
		return breach("HELLO cannot be read: %v", err)
	}
	if h.Epoch <= s.epoch || h.Epoch != a.transport.Epoch {
		return errReplaced
	}
	if h.Protocol != Protocol || (s.key != "" && h.Session != s.key) {
		return breach("HELLO of another session or protocol %d", h.Protocol)
	}
	if before := s.sent - uint64(len(s.kept)); h.Received < before {
		return breach("the client lost frames %d to %d", h.Received+1, before)
	}
	if err := s.acknowledged(h.Received); err != nil {
		return err
	}
	now := time.Now()
	for i := range s.kept {
		s.kept[i].at = now
	}
	s.pace = pace{limit: ackBytes, mark: s.sent + 1} // another way may have another rate
	s.epoch, s.alive, s.tolerate = h.Epoch, seconds(h.AliveS), seconds(h.TolerateS)
	if s.lostTimer != nil {
		s.lostTimer.Stop()
		s.lostTimer = nil
	}
	a.attached, a.next, a.alone = true, h.Received+1, s.sent
	if s.alive > 0 {
		a.watch(s.alive)
	}
	poke(a.kick)
	return nil
}

// accept handles a numbered frame.
func (s *Session) accept(f frame) error {
	if f.kind == kindBye {
		s.finish("bye")
		return nil
	}
	theirs := f.stream%2 == 1
	if f.kind == kindOpen {
		if !theirs || f.stream <= s.lastTheirs {
			return breach("OPEN of stream %d after %d", f.stream, s.lastTheirs)
		}
		message, err := decodeMessage(f.payload)
		if err != nil {
			return err
		}
		s.lastTheirs = f.stream
		stream := s.newStream(f.stream)
		s.handlers.Add(1)
		go func() {
			defer s.handlers.Done()
			stream.Close(s.handle(stream.ctx, stream, message))
		}()
		return nil
	}
	stream := s.streams[f.stream]
	if stream != nil {
		return stream.take(f)
	}
	if f.stream == 0 || (theirs && f.stream > s.lastTheirs) || (!theirs && f.stream > s.lastOurs) {
		return breach("a frame of kind %c on stream %d, which was never opened", f.kind, f.stream)
	}
	return nil // for a stream that is over
}

// Transports

// ended handles the end of an attachment's input.
func (s *Session) ended(a *Attachment, err error) {
	s.mu.Lock()
	current := s.current == a && !s.over
	if current && errors.Is(err, errBreach) {
		log.Printf("epoch %d: %v", a.transport.Epoch, err)
		if s.breached && s.breachAt == s.received {
			s.finish("breach")
		}
		s.breached, s.breachAt = true, s.received
	}
	if current && a.attached && (err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)) {
		// Either the client has ended, or the way to it has.
		a.ended = true
		time.AfterFunc(settleTime, func() {
			if a.transport.Stands == nil || !a.transport.Stands() {
				s.detach(a)
			}
		})
		time.AfterFunc(probeTime, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.current == a {
				s.finish("gone")
			}
		})
		s.mu.Unlock()
		return
	}
	over := s.over
	s.mu.Unlock()
	if !over {
		s.detach(a)
	}
}

// detach continues the session without an attachment.
func (s *Session) detach(a *Attachment) {
	s.mu.Lock()
	if s.current == a {
		s.current = nil
		s.armLost()
	}
	s.mu.Unlock()
	a.stop()
}

// armLost gives the client tolerate_s to come back, counted from its last sign of life.
func (s *Session) armLost() {
	if s.lostTimer != nil || s.over {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(s.tolerate, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.lostTimer == timer {
			s.finish("lost")
		}
	})
	s.lostTimer = timer
}
