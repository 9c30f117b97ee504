package policy

import (
	"math/rand/v2"
	"testing"
)

func TestSequential(t *testing.T) {
	type req struct {
		off, length uint64
		want        uint64 // length of the stream that the request ends
	}
	const k = 1 << 10
	for _, c := range []struct {
		name string
		reqs []req
	}{
		{"one request is a stream of its own length", []req{{0, 4 * k, 4 * k}}},
		{"contiguous requests add up", []req{
			{1000 * k, 4 * k, 4 * k}, {1004 * k, 8 * k, 12 * k}, {1012 * k, 512, 12*k + 512},
		}},
		{"a gap begins a new stream", []req{{0, 4 * k, 4 * k}, {8 * k, 4 * k, 4 * k}}},
		{"an overlap begins a new stream", []req{{0, 8 * k, 8 * k}, {4 * k, 8 * k, 8 * k}}},
		{"a repeated request is no stream", []req{{0, 4 * k, 4 * k}, {0, 4 * k, 4 * k}}},
		{"backwards is no stream", []req{{8 * k, 4 * k, 4 * k}, {4 * k, 4 * k, 4 * k}}},
		{"streams side by side", []req{
			{0, 64 * k, 64 * k},
			{1 << 30, 4 * k, 4 * k},
			{64 * k, 64 * k, 128 * k},
			{1<<30 + 4*k, 4 * k, 8 * k},
			{128 * k, 64 * k, 192 * k},
		}},
		{"a stream is continued once", []req{
			{0, 4 * k, 4 * k}, {4 * k, 4 * k, 8 * k}, {4 * k, 4 * k, 4 * k},
		}},
		{"at the end of the addresses", []req{
			{1<<63 - 8*k, 4 * k, 4 * k}, {1<<63 - 4*k, 4 * k, 8 * k},
		}},
		{"at address 0 nothing precedes", []req{{0, 0, 0}, {0, 512, 512}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s Sequential
			for i, r := range c.reqs {
				if got := s.Add(r.off, r.length); got != r.want {
					t.Errorf("request %d, %d+%d: run %d, want %d", i, r.off, r.length, got, r.want)
				}
			}
		})
	}
}

// TestSequentialRandom shows that random requests are not taken for a stream, and that they make
// few of the streams beside them forgotten.
func TestSequentialRandom(t *testing.T) {
	const length, device = 4096, 1 << 40
	rng := rand.New(rand.NewPCG(1, 2))
	var s Sequential
	var end, run, longest uint64
	end = 77 << 30
	for range 10000 {
		for range 4 {
			if r := s.Add(rng.Uint64N(device/length)*length, length); r > length {
				t.Fatalf("a random request ends a stream of %d bytes", r)
			}
		}
		run = s.Add(end, 128<<10)
		end += 128 << 10
		longest = max(longest, run)
	}
	// 128 places, 4 random requests between two of the stream: about one time in 32 its place is
	// taken, so that 8 requests in a row are what must be seen.
	if longest < 8*128<<10 {
		t.Errorf("the longest stream seen has %d bytes", longest)
	}
}

func TestSequentialAllocatesNothing(t *testing.T) {
	var s Sequential
	var off uint64
	if n := testing.AllocsPerRun(1000, func() { off += 4096; s.Add(off, 4096) }); n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}
