package cache

// NewUUID returns a random UUID.
func NewUUID() UUID { return newUUID() }

// SetIdentity replaces what is recorded of a backing device to recognise it by.
func (c *Cache) SetIdentity(id BackingID, i Identity) error {
	return c.change(id, func(r *BackingRecord) { r.Identity = i }, func(*Backing) {})
}
