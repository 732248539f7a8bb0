/* The program of the image nonewprivs: with the set-user-ID bit it tells whether that bit counted. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	return printf("Effective uid: %u\n", (unsigned)geteuid()) < 0;
}
