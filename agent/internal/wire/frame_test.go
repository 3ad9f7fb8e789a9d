package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFrameAsBytes(t *testing.T) {
	f := frame{kind: kindData, lane: 2, stream: 5, number: 7, payload: []byte("hi")}
	raw := appendFrame(nil, f)
	if want := "\x00\x00\x00\x02D\x02\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x07hi"; string(raw) != want {
		t.Errorf("%q", raw)
	}
	got, err := readFrame(bytes.NewReader(raw), make([]byte, headerSize))
	if err != nil || got.stream != 5 || got.number != 7 || string(got.payload) != "hi" {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, frame{kind: kindData, lane: 2, stream: 5, number: 7, payload: []byte("hi")}))
	f.Add(appendFrame(nil, frame{kind: kindAck, payload: make([]byte, 8)}))
	f.Add([]byte("Last login: yesterday, from somewhere\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		from := bytes.NewReader(raw)
		got, err := readFrame(from, make([]byte, headerSize))
		if err != nil {
			if !errors.Is(err, errBreach) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v", err)
			}
			return
		}
		if read := raw[:len(raw)-from.Len()]; !bytes.Equal(appendFrame(nil, got), read) {
			t.Errorf("%v is not %q", got, read)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte("{\"verb\":\"run\"}\x00/bin/true\x00\x00A=b"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		message, err := decodeMessage(payload)
		if err != nil {
			return
		}
		again, err := encodeMessage(message.Head, message.Fields)
		if err != nil {
			if len(payload) < maxPayload/8 { // JSON may be written longer than it was
				t.Errorf("%q: %v", payload, err)
			}
			return
		}
		same, err := decodeMessage(again)
		if err != nil || len(same.Fields) != len(message.Fields) {
			t.Fatalf("%q became %q: %v", payload, again, err)
		}
		for i := range same.Fields {
			if !bytes.Equal(same.Fields[i], message.Fields[i]) {
				t.Errorf("field %d of %q is %q", i, payload, same.Fields[i])
			}
		}
	})
}

// FuzzSession has an agent read anything behind a HELLO.
func FuzzSession(f *testing.F) {
	open := appendFrame(nil, frame{kind: kindOpen, stream: 1, number: 1, payload: []byte("{}")})
	f.Add(appendFrame(open, frame{kind: kindData, stream: 1, number: 2, payload: []byte("x")}))
	f.Add(appendFrame(nil, frame{kind: kindBye, number: 1}))
	hello := appendFrame(nil, frame{kind: kindHello, payload: []byte(`{"protocol":1,"epoch":1}`)})
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := NewSession(echo, Options{})
		transport := Transport{Epoch: 1, Greeting: func(uint64) []byte { return nil }}
		transport.In = halves{Reader: io.MultiReader(bytes.NewReader(hello), bytes.NewReader(raw), broken{})}
		transport.Out = halves{Writer: io.Discard}
		a, err := s.Attach(transport)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-a.stopped:
		case <-s.Done():
		}
		s.Close()
		s.Wait()
	})
}

func (broken) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }
