package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"os"
	"testing"
)

// BenchmarkLane sends a lane through pipes, as sshd has them.
func BenchmarkLane(b *testing.B) {
	const piece = 32 << 10
	s := NewSession(func(ctx context.Context, st *Stream, open Message) error {
		to, data := st.Writer(1, false), make([]byte, piece)
		for i := 0; i < b.N; i++ {
			if _, err := to.Write(data); err != nil {
				return err
			}
		}
		return nil
	}, Options{})
	in, agentOut, _ := os.Pipe()
	agentIn, out, _ := os.Pipe()
	b.SetBytes(piece)
	b.ReportAllocs()
	_, err := s.Attach(Transport{In: agentIn, Out: agentOut, Epoch: 1, Greeting: func(uint64) []byte { return nil }})
	if err != nil {
		b.Fatal(err)
	}
	raw := appendFrame(nil, frame{kind: kindHello, payload: []byte(`{"protocol":1,"epoch":1}`)})
	_, _ = out.Write(appendFrame(raw, frame{kind: kindOpen, stream: 1, number: 1, payload: []byte("{}")}))
	from, header := bufio.NewReaderSize(in, 256<<10), make([]byte, headerSize)
	sent, unacked := uint64(1), 0
	for {
		if _, err := io.ReadFull(from, header); err != nil {
			b.Fatal(err)
		}
		size := int(binary.BigEndian.Uint32(header))
		_, _ = from.Discard(size)
		raw = raw[:0]
		if header[4] == kindData {
			sent++
			raw = appendFrame(raw, frame{kind: kindCredit, stream: 1, lane: 1, number: sent, payload: binary.BigEndian.AppendUint32(nil, uint32(size))})
		}
		if unacked += size; unacked >= ackBytes || header[4] == kindClose {
			raw = appendFrame(raw, frame{kind: kindAck, payload: header[10:18]})
			unacked = 0
		}
		if len(raw) > 0 {
			_, _ = out.Write(raw)
		}
		if header[4] == kindClose {
			break
		}
	}
	s.Close()
	s.Wait()
}
