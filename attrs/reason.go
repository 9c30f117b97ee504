package attrs

import (
	"fmt"
	"strings"
)

// Status is the answer for an attribute in one word.
type Status uint8

// The statuses; the numbers are on the wire. The zero value is what a request has whose issuer
// was never answered.
const (
	// NotHandled: nobody said anything.
	NotHandled Status = iota
	// Handled: it had its effect, on all of the request.
	Handled
	// Ignored: understood, no effect here; the reason says why.
	Ignored
	// Unsupported: not known or not built in.
	Unsupported
	// Invalid: it cannot be read or is out of range; the reason says which.
	Invalid

	statusEnd
)

var statusNames = []string{"not handled", "handled", "ignored", "unsupported", "invalid"}

func (s Status) String() string { return nameOf(statusNames, uint64(s), "status") }

// severity orders statuses for [Results.Combine]: an answer says more than silence, except that
// what is handled or ignored in a part only must not be taken for the whole.
func (s Status) severity() int {
	switch s {
	case Handled:
		return 0
	case Ignored:
		return 1
	case NotHandled:
		return 2
	case Unsupported:
		return 3
	}
	return 4
}

// Reason says why an answer is as it is, or why a whole set or result cannot be read. It is an
// error, so that decoders can return it; ReasonNone is never returned as one.
type Reason uint8

// The reasons; the numbers are on the wire. [ReasonTable] says what each one means.
const (
	ReasonNone Reason = 0

	// With Ignored.

	ReasonDirection Reason = 1
	ReasonMode      Reason = 2
	ReasonQuota     Reason = 3
	ReasonBusy      Reason = 4
	ReasonDisabled  Reason = 5
	ReasonOverruled Reason = 6
	ReasonPrivilege Reason = 7
	ReasonAlignment Reason = 8
	ReasonTooLarge  Reason = 9
	ReasonNotCached Reason = 10
	ReasonDegraded  Reason = 11
	ReasonSpace     Reason = 12
	ReasonDiffers   Reason = 13
	ReasonHidden    Reason = 14

	// With Invalid.

	ReasonSize      Reason = 32
	ReasonValue     Reason = 33
	ReasonDuplicate Reason = 34
	ReasonReserved  Reason = 35
	ReasonCount     Reason = 36

	// With Handled: what the handling found. The request failed, but for ReasonOverdue.

	ReasonMismatch Reason = 48
	ReasonLate     Reason = 49
	ReasonOverdue  Reason = 50

	// With Unsupported.

	ReasonUnknown Reason = 56
	ReasonKernel  Reason = 57

	// Of a whole set or result: nothing in it is used.

	ReasonVersion   Reason = 64
	ReasonLength    Reason = 65
	ReasonTruncated Reason = 66
	ReasonTrailing  Reason = 67
	ReasonOrder     Reason = 68
	ReasonTooMany   Reason = 69
	ReasonHeader    Reason = 70
)

// reasonRow is what is to be said about a reason.
type reasonRow struct {
	r Reason
	// with is the status it goes with; NotHandled stands for a whole set.
	with Status
	text string
	doc  string
}

var reasons = []reasonRow{
	{ReasonDirection, Ignored, "wrong direction", "The attribute is not for requests in this direction."},
	{ReasonMode, Ignored, "no effect in this mode", "The mode of the device leaves it without effect."},
	{ReasonQuota, Ignored, "quota used up", "The client's or tenant's quota is used up."},
	{ReasonBusy, Ignored, "cache too busy", "A limit was reached: dirty data, free buckets, memory."},
	{ReasonDisabled, Ignored, "switched off", "The configuration switches it off."},
	{
		ReasonOverruled, Ignored, "overruled",
		"Another attribute of the request, or a rule of the cache, contradicts it and counts more.",
	},
	{ReasonPrivilege, Ignored, "not permitted", "The client may not ask for that."},
	{
		ReasonAlignment, Ignored, "not whole blocks",
		"Checksums need a request of whole 4096-byte blocks, aligned to them.",
	},
	{ReasonTooLarge, Ignored, "request too large", "Checksums reach to 256 blocks."},
	{ReasonNotCached, Ignored, "not cached", "There is nothing in the cache to do it with."},
	{ReasonDegraded, Ignored, "cache degraded", "The SSD is failing or gone."},
	{
		ReasonSpace, Ignored, "no room for the values",
		"It was done, but what it returns does not fit where the results go.",
	},
	{
		ReasonDiffers, Ignored, "devices disagree",
		"Two devices returned different values for the same data. Made when results are joined.",
	},
	{
		ReasonHidden, Ignored, "data not seen",
		"The data goes past the cache without a copy that checksums could be computed of.",
	},
	{ReasonSize, Invalid, "wrong size", "The value does not have the size of this attribute."},
	{ReasonValue, Invalid, "value out of range", "The value is not one of this attribute's."},
	{ReasonDuplicate, Invalid, "given twice", "The id is there more than once: none of them counts."},
	{ReasonReserved, Invalid, "reserved bits set", "Unknown flags, or bytes that must be zero are not."},
	{
		ReasonCount, Invalid, "wrong number of checksums",
		"There is not one checksum for each block of the request.",
	},
	{ReasonMismatch, Handled, "data does not match", "Verified, and the data differs: EILSEQ, no effect."},
	{ReasonLate, Handled, "deadline over", "Could not be served in time: ETIME."},
	{
		ReasonOverdue, Handled, "done after the deadline",
		"The request was done, late: when its time was over it could not be given up any more.",
	},
	{ReasonUnknown, Unsupported, "unknown id", "The server does not know the id."},
	{
		ReasonKernel, Unsupported, "not on this kernel",
		"It needs a kernel or a device feature that is not there.",
	},
	{ReasonVersion, NotHandled, "other version", "Of a version that the reader does not know."},
	{
		ReasonLength, NotHandled, "bad length",
		"The length in the header is less than the header's, no multiple of 8, above the limit, " +
			"or beyond the buffer.",
	},
	{ReasonTruncated, NotHandled, "truncated", "An entry reaches beyond the length."},
	{ReasonTrailing, NotHandled, "trailing bytes", "There are bytes after the last entry."},
	{ReasonOrder, NotHandled, "ids not ascending", "Ids do not ascend, or one of them is 0 or 65535."},
	{ReasonTooMany, NotHandled, "too many unknown ids", "More than 16 ids that the reader does not know."},
	{
		ReasonHeader, NotHandled, "bad header",
		"Reserved bits of the header are set, or its required flag does not say what the entries " +
			"say. Of results: a field is out of range.",
	},
}

func (r Reason) String() string {
	for i := range reasons {
		if reasons[i].r == r {
			return reasons[i].text
		}
	}
	if r == ReasonNone {
		return "none"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Error makes a reason usable as an error; whoever passes it on says what could not be read.
func (r Reason) Error() string { return r.String() }

// ReasonTable lists the reasons as a table in Markdown, for the manual.
func ReasonTable() string {
	var b strings.Builder
	b.WriteString("| reason | with | shown as | means |\n|---|---|---|---|\n")
	for _, row := range reasons {
		with := row.with.String()
		if row.with == NotHandled {
			with = "the whole"
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", row.r, with, row.text, row.doc)
	}
	return b.String()
}
