package samples

import (
	"context"
	"reflect"
	"syscall"
	"testing"

	"remote-runner/agent/internal/process"
)

func TestCounters(t *testing.T) {
	told := map[string]float64{}
	addNetwork(told, []byte(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0
  eth0: 100 10 1 2 0 0 0 0 200 20 3 4 0 0 0 0
wlan0:1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
`))
	addProtocols(told, []byte("Ip: Forwarding\nIp: 1\nTcp: MaxConn OutSegs RetransSegs\nTcp: -1 50 5\n"+
		"Udp: InDatagrams RcvbufErrors SndbufErrors\nUdp: 1 2 3\nUdpLite: RcvbufErrors\nUdpLite: 9\n"))
	if want := (map[string]float64{
		"received_bytes": 1100, "received_packets": 20, "errors": 8, "received_drops": 4,
		"sent_bytes": 2200, "sent_packets": 40, "sent_drops": 8, "segments": 50, "retransmits": 5, "udp_drops": 5,
	}); !reflect.DeepEqual(told, want) {
		t.Errorf("%v", told)
	}
}

// What one sample of a host with 50 applications of two processes takes.
func BenchmarkSample(b *testing.B) {
	for i := 0; i < 50; i++ {
		begin(b, "run-"+string(rune('A'+i)), "sleep 600; :")
	}
	uses := map[string]process.Use{}
	looker, sampler := newLooker(nil), keeper.NewSampler()
	b.ReportAllocs()
	b.ResetTimer()
	before := spent()
	for i := 0; i < b.N; i++ {
		looker.sample(context.Background())
		if sampler.Uses(uses, nil); len(uses) != 50 {
			b.Fatal("not all are seen")
		}
	}
	b.ReportMetric(float64(spent()-before)/float64(b.N), "ns-of-cpu/op")
}

func spent() int64 {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func TestBothVersionsOfControlGroupsTellHowLongTheyWereHeldBack(t *testing.T) {
	for stat, want := range map[string]float64{
		"usage_usec 9\nnr_throttled 2\nthrottled_usec 1500000\n":    1.5,
		"nr_periods 7\nnr_throttled 2\nthrottled_time 2500000000\n": 2.5,
	} {
		if seconds, told := throttled([]byte(stat)); seconds != want || !told {
			t.Errorf("%v of %q", seconds, stat)
		}
	}
	if _, told := throttled([]byte("usage_usec 9\n")); told {
		t.Error("a group without a limit's counters")
	}
}
