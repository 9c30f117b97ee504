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

// doneOf makes completions of words like 0f, a flush of device 0, and 1u3, write number 3 of device 1.
func doneOf(t *testing.T, words string) (list []Done) {
	t.Helper()
	for _, w := range strings.Fields(words) {
		x := Done{Dev: int(w[0] - '0')}
		if w[1] == 'u' {
			x.Off, x.Len = int64(w[2]-'0')*512, 512
		}
		list = append(list, x)
	}
	return list
}

// isCuts compares, and looks whether each cut goes on from the one before on both devices.
func isCuts(t *testing.T, p Pair, done string, want ...string) (cuts []Cut) {
	t.Helper()
	cuts, _, err := p.Cuts(doneOf(t, done))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var at [2]int
	for _, c := range cuts {
		got = append(got, c.String())
		if c.At[0] < at[0] || c.At[1] < at[1] {
			t.Errorf("%v goes back", &c)
		}
		at = c.At
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	return cuts
}

func TestCuts(t *testing.T) {
	p := Pair{
		//        0 1 2      3 4     5 6 7 8       9 10    11    12 13 14    15
		logOf(t, "w f traced u cut-0 w w f ack-0-1 u cut-1 cut-2 w f   cut-3 w end"),
		//        0      1     2       3     4 5 6       7     8 9     10
		logOf(t, "traced cut-0 ack-0-1 cut-1 w f ack-1-7 cut-2 w f cut-3 end"),
	}
	const done = "0u2 0f 0u5 1f 1f 0f"
	cuts := isCuts(
		t, p, done,
		"cut at rest in segment 0, at entries 4 and 1",
		"cut during a flush in segment 0, at entries 5 and 1, with some of 2 more on device 0",
		"cut after a flush in segment 0, at entries 8 and 1",
		"cut after a flush in segment 0, at entries 10 and 1",
		"cut at rest in segment 1, at entries 10 and 3",
		"cut during a flush in segment 1, at entries 10 and 4, with some of 1 more on device 1",
		"cut after a flush in segment 1, at entries 10 and 6",
		"cut at rest in segment 2, at entries 11 and 7",
		"cut during a flush in segment 2, at entries 11 and 8, with some of 1 more on device 1",
		"cut after a flush in segment 2, at entries 11 and 10",
		"cut during a flush in segment 2, at entries 12 and 10, with some of 1 more on device 0",
		"cut after a flush in segment 2, at entries 14 and 10",
		"cut at rest in segment 3, at entries 14 and 10",
	)
	for i, acked := range [][]int64{
		{0, 0}, {0, 0}, {0, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 0}, {1, 7}, {1, 7}, {1, 7}, {1, 7}, {1, 7}, {1, 7},
	} {
		if a := p.Acked(&cuts[i], 2); !slices.Equal(a, acked) {
			t.Errorf("%v: acknowledged are %v, not %v", &cuts[i], a, acked)
		}
	}
	if _, points, err := p.Cuts(doneOf(t, done)); err != nil || points != [2]int{3, 2} {
		t.Errorf("%d points, %v", points, err)
	}
	if _, _, err := p.Cuts(doneOf(t, "0u2 0f 0u5 1f 1f")); err == nil {
		t.Error("a flush without an end was not noticed")
	}
}

// TestCutsOutOfOrder: the first of two writes was completed last. Its end is not later than that of the second, then, and
// what the other device did in between comes after both.
func TestCutsOutOfOrder(t *testing.T) {
	p := Pair{logOf(t, "traced cut-0 u u cut-1"), logOf(t, "traced cut-0 w f cut-1")}
	isCuts(
		t, p, "0u2 1f 0u1",
		"cut at rest in segment 0, at entries 1 and 1",
		"cut after a flush in segment 0, at entries 3 and 1",
		"cut after a flush in segment 0, at entries 4 and 1",
		"cut during a flush in segment 0, at entries 4 and 2, with some of 1 more on device 1",
		"cut after a flush in segment 0, at entries 4 and 4",
		"cut at rest in segment 1, at entries 4 and 4",
	)
}

func TestSample(t *testing.T) {
	p := Pair{logOf(t, "traced cut-0 w f w f w f cut-1"), logOf(t, "traced cut-0 cut-1 w f w f")}
	cuts, _, err := p.Cuts(doneOf(t, "0f 0f 0f 1f 1f"))
	if err != nil {
		t.Fatal(err)
	}
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
	p := Pair{logOf(t, "w f traced cut-0 w w w f w f"), logOf(t, "traced cut-0")}
	cuts, _, err := p.Cuts(doneOf(t, "0f 0f"))
	if err != nil {
		t.Fatal(err)
	}
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
