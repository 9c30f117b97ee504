package writelog

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// logOf makes entries of words: w a write, f a flush, u a write with FUA, others are marks. Write number n
// goes to sector n and holds n.
func logOf(t *testing.T, words string) *Log {
	t.Helper()
	var m image
	n := uint64(0)
	for _, w := range strings.Fields(words) {
		switch w {
		case "w", "u":
			n++
			m.entry(n, 1, map[string]uint64{"w": 0, "u": flagFUA}[w], "", sectors(byte(n), 1))
		case "f":
			m.entry(0, 0, flagFlush, "", nil)
		default:
			m.entry(0, 0, flagMark, w, nil)
		}
	}
	return m.log(t)
}

func TestCuts(t *testing.T) {
	p := Pair{
		//           0 1 2     3     4 5 6 7       8     9     10    11 12 13    14
		logOf(t, "w f cut-0 w w f ack-0-1 u cut-1 cut-2 w f    cut-3 w end"),
		//           0     1       2     3 4 5       6 7     8
		logOf(t, "cut-0 ack-0-1 cut-1 w f ack-1-7 cut-2 w f cut-3 end"),
	}
	var got []string
	for _, c := range p.Cuts() {
		got = append(got, c.String())
	}
	want := []string{
		"cut at rest in segment 0, at entries 2 and 0",
		"cut during a flush in segment 0, at entries 3 and 0, with some of 2 more on device 0",
		"cut after a flush in segment 0, at entries 6 and 0",
		"cut after a flush in segment 0, at entries 8 and 0",
		"cut at rest in segment 1, at entries 8 and 2",
		"cut during a flush in segment 1, at entries 8 and 3, with some of 1 more on device 1",
		"cut after a flush in segment 1, at entries 8 and 5",
		// In segment 2 both have flushed: who was first is not known.
		"cut at rest in segment 2, at entries 9 and 6",
		"cut at rest in segment 3, at entries 12 and 9",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i, acked := range [][]int64{{0, 0}, {0, 0}, {0, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 7}, {1, 7}} {
		c := p.Cuts()[i]
		if a := p.Acked(&c, 2); !slices.Equal(a, acked) {
			t.Errorf("%v: acknowledged are %v, not %v", &c, a, acked)
		}
	}
}

func TestSample(t *testing.T) {
	p := Pair{logOf(t, "cut-0 w f w f w f cut-1"), logOf(t, "cut-0 cut-1 w f w f")}
	cuts := p.Cuts()
	some := Sample(cuts, 1, 1)
	if len(cuts) != 2+6+4 || len(some) != 1+2+2 || len(Sample(cuts, 0, 1)) != len(cuts) {
		t.Fatalf("%d of %d cuts", len(some), len(cuts))
	}
	if !slices.EqualFunc(some, Sample(cuts, 1, 1), func(a, b Cut) bool { return a == b }) {
		t.Error("the same seed chooses others")
	}
}

// TestPlayFlushing: over many tries each write is seen whole and not at all, and nothing else is touched.
func TestPlayFlushing(t *testing.T) {
	p := Pair{logOf(t, "w f cut-0 w w w f w f"), logOf(t, "cut-0")}
	cuts := p.Cuts()
	c := cuts[1]
	if c.Kind != CutIn {
		t.Fatal(cuts)
	}
	seen := map[string]bool{}
	for i := range uint64(200) {
		d := make(disk, 6*512)
		if err := p.PlayFlushing(&c, d, rand.New(rand.NewPCG(i, 1))); err != nil {
			t.Fatal(err)
		}
		seen[string([]byte{d[0], d[512], d[2*512], d[3*512], d[4*512], d[5*512]})] = true
	}
	if len(seen) != 8 || !seen["\x00\x00\x02\x03\x04\x00"] || !seen["\x00\x00\x00\x00\x00\x00"] {
		t.Errorf("%d of 8 subsets: %v", len(seen), seen)
	}
}
