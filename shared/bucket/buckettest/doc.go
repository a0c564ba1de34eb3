// Package buckettest is the suite every bucket driver passes.
//
// A driver's test file says how to come by an empty bucket and what the driver cannot do, and runs the suite:
//
//	func TestSuite(t *testing.T) {
//		buckettest.Suite{
//			New:      func(t *testing.T) buckettest.Fixture { … },
//			Features: buckettest.Features{Checksums: true},
//		}.Run(t)
//	}
//
// What a driver cannot do is declared in Features and then tested to be refused; nothing is skipped in silence. Faults
// that need a hand inside the storage, such as broken connections, are the driver's own tests.
package buckettest
