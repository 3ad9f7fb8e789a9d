// Package links measures the network between two hosts: round-trip time and throughput.
package links

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"remote-runner/agent/internal/wire"
)

const (
	tokenSize = 16
	trips     = 20
	echoes    = 'e' // echo: what arrives is sent back
	counts    = 'c' // sink: what arrives is counted, and the count sent at the end
	// A peer that is silent for longer is gone.
	patience  = 5 * time.Second
	longest   = 10 // seconds of throughput
	chunkSize = 64 << 10
	// Connections at a time: a measurement takes two, and anybody may connect.
	places = 16
)

// Meet is the verb `meet`: other hosts may connect, with the token, until the client closes the stream.
func Meet(ctx context.Context, stream *wire.Stream, _ wire.Message) error {
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		return wire.Fail("taken", "nothing can listen here: %v", err)
	}
	var token [tokenSize]byte
	_, _ = rand.Read(token[:])
	var serving sync.WaitGroup
	serving.Add(1)
	go func() {
		defer serving.Done()
		accept(ctx, listener, token, &serving)
	}()
	err = stream.Send(map[string]any{"port": listener.Addr().(*net.TCPAddr).Port, "token": hex.EncodeToString(token[:])})
	if err == nil {
		<-ctx.Done()
	}
	listener.Close()
	serving.Wait()
	return err
}

func accept(ctx context.Context, listener net.Listener, token [tokenSize]byte, serving *sync.WaitGroup) {
	taken := make(chan struct{}, places)
	for {
		connection, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, perhaps: one may be free again soon.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case taken <- struct{}{}:
		default:
			connection.Close()
			continue
		}
		serving.Add(1)
		go func() {
			defer serving.Done()
			defer func() { <-taken }()
			defer connection.Close()
			stop := context.AfterFunc(ctx, func() { connection.Close() })
			defer stop()
			serve(connection, token)
		}()
	}
}

func serve(connection net.Conn, token [tokenSize]byte) {
	var head [tokenSize + 1]byte
	_ = connection.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(connection, head[:]); err != nil || subtle.ConstantTimeCompare(head[:tokenSize], token[:]) != 1 {
		return
	}
	buffer := make([]byte, chunkSize)
	count := uint64(0)
	for {
		_ = connection.SetDeadline(time.Now().Add(patience))
		n, err := connection.Read(buffer)
		count += uint64(n)
		if head[tokenSize] == echoes && err == nil {
			_, err = connection.Write(buffer[:n])
		}
		if err != nil {
			break
		}
	}
	if head[tokenSize] == counts {
		_, _ = connection.Write(binary.BigEndian.AppendUint64(nil, count))
	}
}

// Reach is the verb `reach`: it measures the link to an agent that serves `meet`.
func Reach(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		Host, Token string
		Port        int
		Seconds     float64
	}
	err := open.Decode(&request)
	token, wrong := hex.DecodeString(request.Token)
	if err != nil || wrong != nil || len(token) != tokenSize || request.Port < 1 || request.Port > 65535 ||
		!(request.Seconds > 0 && request.Seconds <= longest) {
		return wire.Fail("breach", "nothing can be reached by %s", open.Head)
	}
	address := net.JoinHostPort(request.Host, strconv.Itoa(request.Port))
	took, err := roundTrips(ctx, address, token)
	if err != nil {
		return wire.Fail("refused", "%s cannot be reached from here: %v", address, err)
	}
	sent, seconds, err := throughput(ctx, address, token, time.Duration(request.Seconds*float64(time.Second)))
	if err != nil {
		return wire.Fail("refused", "%s takes nothing more: %v", address, err)
	}
	return stream.Send(map[string]any{"round_trips_s": took, "bytes": sent, "seconds": seconds})
}

func dial(ctx context.Context, address string, token []byte, kind byte) (net.Conn, func() bool, error) {
	dialer := net.Dialer{Timeout: patience}
	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { connection.Close() })
	_ = connection.SetDeadline(time.Now().Add(patience))
	if _, err := connection.Write(append(token[:tokenSize:tokenSize], kind)); err != nil {
		connection.Close()
		return nil, nil, err
	}
	return connection, stop, nil
}

func roundTrips(ctx context.Context, address string, token []byte) ([]float64, error) {
	connection, stop, err := dial(ctx, address, token, echoes)
	if err != nil {
		return nil, err
	}
	defer stop()
	defer connection.Close()
	var took []float64
	for byteOf := make([]byte, 1); len(took) < trips; {
		_ = connection.SetDeadline(time.Now().Add(patience))
		began := time.Now()
		if _, err := connection.Write(byteOf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(connection, byteOf); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began).Seconds())
	}
	return took, nil
}

// throughput sends for that long, and waits for the count of what arrived.
func throughput(ctx context.Context, address string, token []byte, long time.Duration) (uint64, float64, error) {
	connection, stop, err := dial(ctx, address, token, counts)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	defer connection.Close()
	began, chunk := time.Now(), make([]byte, chunkSize)
	_ = connection.SetDeadline(began.Add(long + patience))
	for time.Since(began) < long {
		if _, err := connection.Write(chunk); err != nil {
			return 0, 0, err
		}
	}
	if err := connection.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, 0, err
	}
	var count [8]byte
	if _, err := io.ReadFull(connection, count[:]); err != nil {
		return 0, 0, err
	}
	return binary.BigEndian.Uint64(count[:]), time.Since(began).Seconds(), nil
}
