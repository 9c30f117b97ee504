package cache

import "fmt"

// Severity says what a problem costs.
type Severity string

// The severities, from the least to the worst.
const (
	// Harmless: the other copy or the journal has it, and the next start repairs it.
	Harmless Severity = "harmless"
	// CleanLost: copies are lost, or must not be used, of what the backing device has.
	CleanLost Severity = "clean-lost"
	// DirtyLost: data is lost, or may be, that the backing device does not have.
	DirtyLost Severity = "dirty-lost"
)

// ProblemKind names a kind of problem for scripts.
type ProblemKind string

// The kinds of problems.
const (
	ProblemSuper        ProblemKind = "superblock-copy"
	ProblemSupers       ProblemKind = "superblocks"
	ProblemSummaryCopy  ProblemKind = "summary-copy"
	ProblemSummaryBuilt ProblemKind = "summary-rebuilt"
	ProblemSummary      ProblemKind = "summary"
	ProblemJournal      ProblemKind = "journal"
	ProblemJournalEnd   ProblemKind = "journal-end"
	ProblemRecord       ProblemKind = "journal-record"
	ProblemPending      ProblemKind = "pending-ring"
	ProblemCount        ProblemKind = "dirty-count"
	ProblemIndex        ProblemKind = "index"
	ProblemClean        ProblemKind = "clean-block"
	ProblemDirty        ProblemKind = "dirty-block"
	ProblemRead         ProblemKind = "unreadable-bucket"
	ProblemDiffers      ProblemKind = "backing-differs"
)

// Advice is what a kind of problem means and what to do about it.
type Advice struct {
	Meaning string
	Todo    string
}

const (
	startRepairs = "nothing: the next start repairs it; if it happens again, replace the SSD"
	salvageFirst = "if the start is refused, ubcache salvage saves the dirty data that is left"
)

var advice = map[ProblemKind]Advice{
	ProblemSuper:       {"one copy of the superblock is damaged, the other is whole", startRepairs},
	ProblemSupers:      {"both copies of the superblock are damaged: what the cache serves is not known", salvageFirst},
	ProblemSummaryCopy: {"one copy of a piece of the index is damaged, the other is whole", startRepairs},
	ProblemSummaryBuilt: {
		"both copies of a piece of the index are damaged, and the journal has all that was in it",
		startRepairs,
	},
	ProblemSummary: {
		"both copies of a piece of the index are damaged, and the journal does not reach back far enough",
		salvageFirst,
	},
	ProblemJournal:    {"pages of the journal are lost: what changed by them is not known", salvageFirst},
	ProblemJournalEnd: {"the newest pages of the journal are lost", salvageFirst},
	ProblemRecord:     {"the journal or the index has what no ubcache writes", salvageFirst},
	ProblemPending: {
		"what a killed daemon left in memory does not fit to the journal",
		"the pending ring in the runtime folder is another cache's or damaged; " + salvageFirst,
	},
	ProblemCount: {"blocks are missing that were dirty when the cache was stopped", salvageFirst},
	ProblemIndex: {"the index contradicts itself", "report it: this is a fault of ubcache; " + salvageFirst},
	ProblemClean: {
		"the SSD returns a copy wrongly; reads find that out and take the data from the backing device",
		"nothing: ubcache scrub drops such blocks; if there are more and more, replace the SSD",
	},
	ProblemDirty: {
		"the SSD has lost data that the backing device does not have",
		"reads of these sectors fail until they are written anew: restore the files they belong to",
	},
	ProblemRead: {
		"the SSD cannot read a part of itself", "replace the SSD; " + salvageFirst,
	},
	ProblemDiffers: {
		"the backing device was changed without the cache, or returns wrong data",
		"find out who wrote to it; start with --drop NAME forgets the cached copies",
	},
}

// AdviceFor is what a kind of problem means and what to do about it.
func AdviceFor(k ProblemKind) Advice { return advice[k] }

// Problem is something that is not as it should be on the SSD of a cache.
type Problem struct {
	Kind     ProblemKind `json:"kind"`
	Severity Severity    `json:"severity"`
	Text     string      `json:"text"`
	Meaning  string      `json:"meaning"`
	Todo     string      `json:"todo"`
}

func newProblem(kind ProblemKind, sev Severity, format string, args ...any) Problem {
	a := advice[kind]
	return Problem{
		Kind: kind, Severity: sev, Text: fmt.Sprintf(format, args...), Meaning: a.Meaning, Todo: a.Todo,
	}
}

func (p Problem) String() string { return p.Text }
